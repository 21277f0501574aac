//! Emojivoto, the application everybody tries a mesh with, written anew: a web front over HTTP/1.1, two gRPC services
//! behind it, and a bot that votes.
//!
//! Two things go wrong on purpose, so that a mesh has something to show: votes for the doughnut fail, and the leaderboard
//! makes one call for each emoji on it.

pub mod bot;
pub mod emoji;
pub mod grpc;
pub mod messages;
pub mod serve;
pub mod services;
pub mod web;
