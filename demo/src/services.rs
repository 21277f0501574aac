//! The two gRPC services: emoji knows the list, voting counts votes in memory.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::net::TcpListener;
use tonic::Status;

use crate::{
    emoji,
    grpc::{self, Answer, Answers, Calls, Incoming},
    messages::{
        EMOJI_SERVICE, Emoji, FindByShortcodeRequest, FindByShortcodeResponse, ListAllEmojiRequest,
        ListAllEmojiResponse, ResultsRequest, ResultsResponse, VOTING_SERVICE, VoteRequest, VoteResponse, VotingResult,
    },
    serve::{self, Shutdown},
};

/// The emoji whose votes fail.
const DOUGHNUT: &str = "doughnut";

/// `EmojiService`.
#[derive(Debug, Clone, Copy)]
struct EmojiService;

/// What it can be asked.
#[derive(Debug, Clone, Copy)]
enum EmojiRpc {
    ListAll,
    FindByShortcode,
}

impl Answers for EmojiService {
    const NAME: &'static str = EMOJI_SERVICE;
    type Rpc = EmojiRpc;

    fn rpc(&self, name: &str) -> Option<EmojiRpc> {
        match name {
            "ListAll" => Some(EmojiRpc::ListAll),
            "FindByShortcode" => Some(EmojiRpc::FindByShortcode),
            _ => None,
        }
    }

    async fn answer(&self, rpc: EmojiRpc, request: Incoming) -> Answer {
        match rpc {
            EmojiRpc::ListAll => {
                let list = emoji::all().map(message).collect();
                request.unary(|_: ListAllEmojiRequest| async { Ok(ListAllEmojiResponse { list }) }).await
            }
            EmojiRpc::FindByShortcode => {
                let find = |asked: FindByShortcodeRequest| async move {
                    Ok(FindByShortcodeResponse { emoji: emoji::find(&asked.shortcode).map(message) })
                };
                request.unary(find).await
            }
        }
    }
}

fn message(emoji: emoji::Emoji) -> Emoji {
    Emoji { unicode: emoji.unicode.to_owned(), shortcode: emoji.shortcode() }
}

/// How voting behaves.
#[derive(Debug, Clone, Copy)]
pub struct Voting {
    /// Share of the votes for the doughnut that fail, 0 to 1.
    pub failure_rate: f32,
    /// Added to every vote.
    pub delay: Duration,
}

impl Default for Voting {
    fn default() -> Self {
        Self { failure_rate: 1.0, delay: Duration::ZERO }
    }
}

/// `VotingService`.
#[derive(Debug, Clone)]
struct VotingService {
    behaviour: Voting,
    /// By place in [`emoji::all`].
    votes: Arc<[AtomicU64]>,
}

impl VotingService {
    fn new(behaviour: Voting) -> Self {
        Self { behaviour, votes: emoji::all().map(|_| AtomicU64::new(0)).collect() }
    }

    async fn vote(self, index: usize, name: &'static str) -> Result<VoteResponse, Status> {
        if name == DOUGHNUT && fastrand::f32() < self.behaviour.failure_rate {
            tracing::warn!("a vote for :{DOUGHNUT}: fails, as it should in this demo");
            return Err(Status::unknown("ERROR"));
        }
        tokio::time::sleep(self.behaviour.delay).await;
        if let Some(votes) = self.votes.get(index) {
            let total = votes.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::info!("voted for :{name}:, which now has {total}");
        }
        Ok(VoteResponse {})
    }

    /// Emoji with votes, most votes first, then in the order of the list.
    fn results(&self) -> Vec<(String, u64)> {
        let mut results: Vec<_> = emoji::all()
            .zip(self.votes.iter())
            .map(|(emoji, votes)| (emoji.shortcode(), votes.load(Ordering::Relaxed)))
            .filter(|(_, votes)| *votes > 0)
            .collect();
        results.sort_by_key(|(_, votes)| std::cmp::Reverse(*votes));
        results
    }

    fn results_message(&self) -> ResultsResponse {
        let results = self.results().into_iter();
        let results = results
            .map(|(shortcode, votes)| VotingResult { shortcode, votes: i32::try_from(votes).unwrap_or(i32::MAX) })
            .collect();
        ResultsResponse { results }
    }

    fn render(&self, out: &mut String) {
        out.push_str("# HELP emojivoto_votes_total Votes counted.\n# TYPE emojivoto_votes_total counter\n");
        for (shortcode, votes) in self.results() {
            let _ = writeln!(out, "emojivoto_votes_total{{emoji=\"{shortcode}\"}} {votes}");
        }
    }
}

/// What it can be asked.
#[derive(Debug, Clone, Copy)]
enum VotingRpc {
    /// With the place in [`emoji::all`].
    Vote(usize, &'static str),
    Results,
}

impl Answers for VotingService {
    const NAME: &'static str = VOTING_SERVICE;
    type Rpc = VotingRpc;

    fn rpc(&self, name: &str) -> Option<VotingRpc> {
        if name == "Results" {
            return Some(VotingRpc::Results);
        }
        let (index, emoji) = emoji::all().enumerate().find(|(_, emoji)| emoji.rpc() == name)?;
        Some(VotingRpc::Vote(index, emoji.name))
    }

    async fn answer(&self, rpc: VotingRpc, request: Incoming) -> Answer {
        let this = self.clone();
        match rpc {
            VotingRpc::Vote(index, name) => request.unary(move |_: VoteRequest| this.vote(index, name)).await,
            VotingRpc::Results => request.unary(|_: ResultsRequest| async move { Ok(this.results_message()) }).await,
        }
    }
}

/// The sockets of a gRPC service, already listening.
#[derive(Debug)]
pub struct Sockets {
    /// For gRPC.
    pub grpc: TcpListener,
    /// For Prometheus.
    pub prometheus: TcpListener,
}

/// Runs the emoji service until the end.
///
/// # Errors
///
/// When the gRPC server ends for another reason.
pub async fn run_emoji(sockets: Sockets, shutdown: Shutdown) -> anyhow::Result<()> {
    run(sockets, shutdown, EmojiService, |_| {}).await
}

/// Runs the voting service until the end.
///
/// # Errors
///
/// When the gRPC server ends for another reason.
pub async fn run_voting(sockets: Sockets, behaviour: Voting, shutdown: Shutdown) -> anyhow::Result<()> {
    let service = VotingService::new(behaviour);
    let metrics = service.clone();
    run(sockets, shutdown, service, move |out| metrics.render(out)).await
}

async fn run<A, M>(sockets: Sockets, shutdown: Shutdown, answers: A, more: M) -> anyhow::Result<()>
where
    A: Answers,
    M: Fn(&mut String) + Clone + Send + 'static,
{
    let calls = Calls::default();
    let counters = calls.clone();
    let metrics = serve::prometheus(sockets.prometheus, shutdown.clone(), move || {
        let mut out = String::new();
        counters.render(A::NAME, &mut out);
        more(&mut out);
        out
    });
    let (served, ()) = tokio::join!(grpc::serve(sockets.grpc, shutdown, answers, calls), metrics);
    served
}
