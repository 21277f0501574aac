//! How many connections a data thread accepts, and from whom.
//!
//! Accepted connections get at most half of the process' file descriptors: each needs another one for its way on, and the
//! rest is for the control plane, the admin server and new attempts. From other pods, one address may have no more
//! connections than there are places left: alone it gets half of them, and a newcomer always finds room (the idea of
//! Choudhury and Hahne, "Dynamic queue length thresholds", 1998). Nothing here has to be configured.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::metrics::Direction;

/// Descriptors that are never given to connections, if there are enough.
const RESERVE: usize = 64;
/// Refusals are counted each, but told in the log this often.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Why a connection was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// There are too many connections, all together.
    Connections,
    /// Its client has too many.
    Client,
    /// The system has no file descriptor for it.
    Files,
    /// The process is near the limit of its memory.
    Memory,
}

impl Shed {
    /// The value of the metrics' label `error`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Connections => "connection limit",
            Self::Client => "client connection limit",
            Self::Files => "file descriptors",
            Self::Memory => "memory",
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Connections => "too many connections are open in this proxy",
            Self::Client => "the client has too many connections open, and others need some",
            Self::Files => "the process has no file descriptors left",
            Self::Memory => "the process is near the limit of its memory",
        }
    }
}

#[derive(Default)]
struct Side {
    limit: usize,
    open: Cell<usize>,
    /// By client; only inbound, as outbound there is one client.
    clients: RefCell<HashMap<IpAddr, usize>>,
}

/// The connections of one data thread.
pub struct Admission {
    sides: [Side; 2],
    /// For both directions together.
    limit: usize,
    logged: Cell<Option<Instant>>,
    silent: Cell<u64>,
}

fn index(direction: Direction) -> usize {
    match direction {
        Direction::Inbound => 0,
        Direction::Outbound => 1,
    }
}

impl Admission {
    /// With limits of this thread for each direction, and the thread's share of the process' file descriptors.
    pub fn new(inbound: usize, outbound: usize, files: usize) -> Self {
        let side = |limit: usize| Side { limit: limit.max(1), ..Side::default() };
        let reserve = RESERVE.min(files / 4);
        Self {
            sides: [side(inbound), side(outbound)],
            limit: ((files - reserve) / 2).max(2),
            logged: Cell::new(None),
            silent: Cell::new(0),
        }
    }

    /// Takes a place for a connection; [`Admission::leave`] gives it back.
    ///
    /// # Errors
    /// There is none.
    pub fn enter(&self, direction: Direction, client: IpAddr) -> Result<(), Shed> {
        let side = &self.sides[index(direction)];
        let other = self.sides[1 - index(direction)].open.get();
        let open = side.open.get();
        // Neither direction takes the last quarter from the other.
        let share = (self.limit - self.limit / 4).min(self.limit.saturating_sub(other));
        let left = side.limit.min(share).saturating_sub(open);
        if left == 0 {
            return Err(Shed::Connections);
        }
        if direction == Direction::Inbound {
            let mut clients = side.clients.borrow_mut();
            let own = clients.entry(client).or_default();
            if *own >= left {
                if *own == 0 {
                    clients.remove(&client);
                }
                return Err(Shed::Client);
            }
            *own += 1;
        }
        side.open.set(open + 1);
        Ok(())
    }

    /// A connection has ended.
    pub fn leave(&self, direction: Direction, client: IpAddr) {
        let side = &self.sides[index(direction)];
        side.open.set(side.open.get().saturating_sub(1));
        if direction == Direction::Inbound {
            let mut clients = side.clients.borrow_mut();
            if let Some(own) = clients.get_mut(&client) {
                *own = own.saturating_sub(1);
                if *own == 0 {
                    clients.remove(&client);
                }
            }
            // A burst's memory does not stay.
            if clients.is_empty() && clients.capacity() > 1024 {
                *clients = HashMap::new();
            }
        }
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.sides.iter().map(|s| s.open.get()).sum()
    }

    /// Tells the log, now and then, that connections are shed.
    pub fn log(&self, direction: Direction, client: IpAddr, shed: Shed) {
        let now = Instant::now();
        if self.logged.get().is_some_and(|at| now.saturating_duration_since(at) < LOG_INTERVAL) {
            self.silent.set(self.silent.get() + 1);
            return;
        }
        self.logged.set(Some(now));
        let more = self.silent.take();
        let (direction, open, reason) = (direction.as_str(), self.open(), shed.reason());
        tracing::warn!(direction, %client, open, more, "connection shed: {reason}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u8) -> IpAddr {
        [10, 244, 0, n].into()
    }

    /// Opens as many as possible.
    fn fill(admission: &Admission, direction: Direction, client: IpAddr) -> usize {
        (0..).take_while(|_| admission.enter(direction, client).is_ok()).count()
    }

    #[test]
    fn one_client_leaves_room_for_others() {
        let admission = Admission::new(1000, 1000, 1_000_000);
        assert_eq!(fill(&admission, Direction::Inbound, client(1)), 500);
        assert_eq!(admission.enter(Direction::Inbound, client(1)), Err(Shed::Client));
        let second = fill(&admission, Direction::Inbound, client(2));
        assert_eq!(second, 250);
        for n in 3..8 {
            assert_eq!(admission.enter(Direction::Inbound, client(n)), Ok(()), "a newcomer finds room");
        }
        for _ in 0..500 {
            admission.leave(Direction::Inbound, client(1));
        }
        assert!(fill(&admission, Direction::Inbound, client(2)) > 100, "what became free can be used");
        assert_eq!(admission.sides[0].clients.borrow().get(&client(1)), None);
    }

    #[test]
    fn the_own_application_is_one_client() {
        let admission = Admission::new(10, 10, 1_000_000);
        assert_eq!(fill(&admission, Direction::Outbound, client(1)), 10);
        assert_eq!(admission.enter(Direction::Outbound, client(1)), Err(Shed::Connections));
        assert_eq!(admission.enter(Direction::Inbound, client(1)), Ok(()));
        admission.leave(Direction::Outbound, client(1));
        assert_eq!(admission.enter(Direction::Outbound, client(1)), Ok(()));
    }

    #[test]
    fn few_files_are_shared_by_both_directions() {
        let admission = Admission::new(1000, 1000, 64);
        let out = fill(&admission, Direction::Outbound, client(1));
        assert_eq!(out, 18, "of (64 - 16) / 2");
        assert!(fill(&admission, Direction::Inbound, client(2)) >= 3);
        assert!(admission.open() <= 24);
        // Even nearly nothing is no reason to accept nothing.
        assert_eq!(Admission::new(1, 1, 3).enter(Direction::Inbound, client(1)), Ok(()));
    }
}
