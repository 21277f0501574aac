//! Messages and paths of the two gRPC services, as `proto/emojivoto.proto` beside this crate describes them.
//!
//! Written by hand rather than generated: the hundred `Vote` rpcs come out of the table in [`crate::emoji`], and nothing
//! needs a protobuf compiler.

use tonic::codegen::http::uri::PathAndQuery;

/// Full name of the service that knows the emoji.
pub const EMOJI_SERVICE: &str = "emojivoto.v1.EmojiService";
/// Full name of the service that counts votes.
pub const VOTING_SERVICE: &str = "emojivoto.v1.VotingService";

/// The HTTP/2 path of an rpc; `None` when the name cannot be part of a path.
pub fn path(service: &str, rpc: &str) -> Option<PathAndQuery> {
    format!("/{service}/{rpc}").parse().ok()
}

/// One emoji.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Emoji {
    /// The characters to show.
    #[prost(string, tag = "1")]
    pub unicode: String,
    /// Its name between colons.
    #[prost(string, tag = "2")]
    pub shortcode: String,
}

/// Asks for every emoji.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListAllEmojiRequest {}

/// Every emoji, in the order to show them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListAllEmojiResponse {
    /// See the type.
    #[prost(message, repeated, tag = "1")]
    pub list: Vec<Emoji>,
}

/// Asks for one emoji.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FindByShortcodeRequest {
    /// Its name between colons.
    #[prost(string, tag = "1")]
    pub shortcode: String,
}

/// The emoji that was asked for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FindByShortcodeResponse {
    /// Absent when there is no such emoji.
    #[prost(message, optional, tag = "1")]
    pub emoji: Option<Emoji>,
}

/// One vote; the rpc says what for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VoteRequest {}

/// The vote was counted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VoteResponse {}

/// Asks for the votes so far.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResultsRequest {}

/// The votes for one emoji.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VotingResult {
    /// Its name between colons.
    #[prost(string, tag = "1")]
    pub shortcode: String,
    /// How many.
    #[prost(int32, tag = "2")]
    pub votes: i32,
}

/// The emoji that have votes, most votes first.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResultsResponse {
    /// See the type.
    #[prost(message, repeated, tag = "1")]
    pub results: Vec<VotingResult>,
}
