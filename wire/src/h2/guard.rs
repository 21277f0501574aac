//! Counters against floods: frames that cost this end work and make no progress.

use super::{Error, Reason};
use crate::Limits;

/// WINDOW_UPDATE frames that a peer may send for each HEADERS or DATA frame it got, before they count as idle. Go's
/// server, for one, updates both windows for every 4 KiB that its handler reads, eight times for a full frame.
const UPDATES_PER_FRAME: u32 = 16;

/// Idle frames that every turn of the driver may bring for nothing. There is no clock here, but a flood comes in large
/// reads, and what comes one by one (keep-alive PINGs, for hours) is none.
const IDLE_PER_TURN: u32 = 2;

/// Counts what may be an attack. Counters decay by half every so many received frames and with every
/// [`Guard::tick`], so that a long-lived connection is judged by the present.
#[derive(Debug)]
pub(super) struct Guard {
    frames: u32,
    window: u32,
    idle: u32,
    idle_limit: u32,
    resets: u32,
    reset_limit: u32,
    updates: u32,
    /// A frame came in this turn.
    busy: bool,
}

fn calm(detail: &'static str) -> Error {
    Error { reason: Reason::ENHANCE_YOUR_CALM, detail }
}

impl Guard {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            frames: 0,
            window: limits.window_frames.max(1),
            idle: 0,
            idle_limit: limits.idle_frames,
            resets: 0,
            reset_limit: limits.rapid_resets,
            updates: 64,
            busy: false,
        }
    }

    /// A frame was received.
    pub(super) fn frame(&mut self) {
        self.busy = true;
        self.frames += 1;
        if self.frames >= self.window {
            self.frames = 0;
            self.tick();
        }
    }

    /// The input of one turn is used up.
    pub(super) fn turn(&mut self) {
        if std::mem::take(&mut self.busy) {
            self.idle = self.idle.saturating_sub(IDLE_PER_TURN);
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self) {
        self.idle /= 2;
        self.resets /= 2;
    }

    /// A request was let be answered.
    pub(super) fn answered(&mut self) {
        self.resets = self.resets.saturating_sub(1);
    }

    /// A frame made no progress.
    pub(super) fn idle(&mut self) -> Result<(), Error> {
        self.idle += 1;
        match self.idle > self.idle_limit {
            true => Err(calm("too many frames without progress")),
            false => Ok(()),
        }
    }

    /// The peer gave up, or made this end give up, a request of its own that it had not let be answered.
    pub(super) fn reset(&mut self) -> Result<(), Error> {
        self.resets += 1;
        match self.resets > self.reset_limit {
            true => Err(calm("too many streams reset before they were answered")),
            false => Ok(()),
        }
    }

    /// This end sent HEADERS or DATA, which the peer may answer: some measure the path with a PING for each.
    pub(super) fn sent(&mut self) {
        self.idle = self.idle.saturating_sub(1);
        self.opened();
    }

    /// The peer opened a stream, of which it may update the window.
    pub(super) fn opened(&mut self) {
        self.updates = self.updates.saturating_add(UPDATES_PER_FRAME).min(1 << 20);
    }

    /// The peer sent WINDOW_UPDATE.
    pub(super) fn update(&mut self) -> Result<(), Error> {
        match self.updates.checked_sub(1) {
            Some(left) => self.updates = left,
            None => self.idle()?,
        }
        Ok(())
    }
}
