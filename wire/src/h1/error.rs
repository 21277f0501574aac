//! Why a message was refused.

use std::fmt;

/// A message that was refused. The connection is of no use after it: where the next message begins is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $status:literal, $reason:literal;)*) => {
        /// What was wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorKind { $(#[doc = $reason] $(#[$doc])* $name,)* }

        impl ErrorKind {
            /// Every kind there is.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$name),*];

            fn describe(self) -> (u16, &'static str) {
                match self { $(ErrorKind::$name => ($status, $reason),)* }
            }
        }
    };
}

kinds! {
    StartLine = 400, "malformed request line or status line";
    Version = 505, "HTTP version is not 1.0 or 1.1";
    Target = 400, "malformed request target";
    TargetTooLong = 414, "request line is longer than the limit";
    HeadTooLarge = 431, "message head is larger than the limit";
    TooManyHeaders = 431, "more header fields than the limit";
    HeaderName = 400, "malformed header field name, or space before the colon, or a folded line";
    HeaderValue = 400, "control octet in a header field value";
    BareLineFeed = 400, "line that ends without carriage return";
    BareCarriageReturn = 400, "carriage return that does not end a line";
    HostMissing = 400, "no host field in an HTTP/1.1 request";
    HostRepeated = 400, "more than one host field";
    HostInvalid = 400, "malformed host field or authority";
    ContentLength = 400, "malformed content-length";
    ContentLengthRepeated = 400, "more than one content-length";
    LengthAndCoding = 400, "content-length together with transfer-encoding";
    TransferEncoding = 400, "transfer-encoding is not one final chunked";
    TransferEncodingVersion = 400, "transfer-encoding in HTTP/1.0";
    UnknownCoding = 501, "transfer coding other than chunked";
    ConnectBody = 400, "CONNECT request with a body";
    Upgrade = 400, "101 response without a matching upgrade field";
    ChunkSize = 400, "malformed chunk size";
    ChunkExtension = 400, "malformed chunk extension";
    ChunkLineTooLong = 400, "chunk size line is longer than the limit";
    ChunkExtensionsTooLarge = 400, "chunk extensions of one body are larger than the limit";
    ChunkEnd = 400, "chunk data is not followed by the end of its line";
    TrailerTooLarge = 431, "trailer section is larger than the limit";
    TrailerField = 400, "framing or routing field in the trailer section";
    EmptyLines = 400, "too many empty lines before a request";
    Unsolicited = 400, "octets that belong to no request";
    Truncated = 400, "connection closed in the middle of a message";
}

impl Error {
    /// What was wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The status to answer a request with that was refused so. For a response that was refused answer 502.
    pub fn status(&self) -> u16 {
        self.kind.describe().0
    }

    /// One sentence for logs and for the answer.
    pub fn reason(&self) -> &'static str {
        self.kind.describe().1
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for Error {}
