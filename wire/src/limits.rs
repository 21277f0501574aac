//! Every limit of the codecs, in one place.

/// Bounds that a peer cannot push a codec over. The defaults are what weft-proxy runs with.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Octets of a head: request line or status line and all header fields; for HTTP/2 the decoded header list
    /// (RFC 9113 §10.5.1, each field counted with 32 octets of overhead) and the encoded block.
    pub head_size: usize,
    /// Header fields in one head, trailers counted separately.
    pub header_count: usize,
    /// Octets of a chunk-size line of HTTP/1.1 with its extensions.
    pub chunk_line: usize,
    /// Octets of all chunk extensions of one body of HTTP/1.1 together.
    pub chunk_extensions: usize,
    /// Octets of all trailers together.
    pub trailer_size: usize,
    /// HTTP/2 streams that the peer may have open at once.
    pub concurrent_streams: u32,
    /// CONTINUATION frames in one header block (CVE-2024-27316 and its family).
    pub continuations: u32,
    /// Streams that the peer may reset before they were answered, within [`Limits::window_frames`] frames (CVE-2023-44487).
    pub rapid_resets: u32,
    /// SETTINGS, PING, PRIORITY, empty DATA and similar frames that make no progress, before the peer is told to calm down.
    pub idle_frames: u32,
    /// Octets of output, pending for a peer that does not read, which control frames may cause.
    pub control_backlog: usize,
    /// Octets of HPACK dynamic table, each direction.
    pub hpack_table: usize,
    /// HTTP/2 receive window of a stream, in octets.
    pub stream_window: u32,
    /// HTTP/2 receive window of a connection, in octets.
    pub connection_window: u32,
    /// Octets that the streams of an HTTP/2 connection may hold together (delivered to the driver, who has not passed them on)
    /// without using up the connection's window: as long as they do not, streams that stand still stop nobody else.
    pub held: u32,
    /// Largest HTTP/2 frame payload accepted, in octets (SETTINGS_MAX_FRAME_SIZE).
    pub frame_size: u32,
    /// Number of received frames after which the counters of `rapid_resets` and `idle_frames` decay by half.
    pub window_frames: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_size: 64 * 1024,
            header_count: 128,
            chunk_line: 256,
            chunk_extensions: 8 * 1024,
            trailer_size: 16 * 1024,
            concurrent_streams: 1024,
            continuations: 16,
            rapid_resets: 200,
            idle_frames: 1000,
            control_backlog: 64 * 1024,
            hpack_table: 4096,
            stream_window: 64 * 1024,
            connection_window: 1024 * 1024,
            // 256 streams that hold their whole window.
            held: 16 * 1024 * 1024,
            frame_size: 16 * 1024,
            window_frames: 2000,
        }
    }
}
