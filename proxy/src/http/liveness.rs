//! Notices that a server has died without a word.
//!
//! A machine that is gone sends no reset. So while requests are outstanding on a connection to another proxy, and nothing
//! was heard from it for a moment, it is pinged; proxies answer pings whatever their application does. One that does not
//! is *suspect* at first: other endpoints are preferred, and requests that may be repeated go there. Once something is
//! heard again, it is as it was. One that stays silent is given up. Applications themselves are not pinged: some take that
//! for an attack.
//!
//! A connection without outstanding requests costs nothing here.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    Conn, Lost,
    conn::{Closing, Codec, ready_output},
};
use crate::{timer::Key, upstream::Suspect, worker::Due};

/// Silence after which a server with outstanding requests is pinged, and the time between looks at its answer.
const BEAT: Duration = Duration::from_millis(250);
/// Beats after a ping without any octet that make a server suspect.
const SUSPECT: u32 = 2;
/// Beats after a ping without any octet after which a server is given up: 5 s. A busy machine may be slow.
const GIVE_UP: u32 = 20;
/// Beats between pings at most, while only pings are answered: long streams may be silent.
const SLOWEST: u32 = 64;
/// What is known about a connection's life.
#[derive(Default)]
pub(super) struct Liveness {
    /// The next look.
    timer: Cell<Option<Key>>,
    /// Something was read since the last look.
    heard: Cell<bool>,
    /// Beats since an unanswered ping.
    probes: Cell<u32>,
    /// Beats of silence before the next ping, less one.
    patience: Cell<u32>,
    suspect: RefCell<Option<Suspect>>,
}

impl Conn {
    /// Something was read.
    pub(super) fn heard(&self) {
        self.liveness.heard.set(true);
    }

    /// A request was sent.
    pub(super) fn awaits(self: &Rc<Self>) {
        let live = &self.liveness;
        let patience = live.patience.replace(0);
        if live.timer.get().is_some() && patience == 0 || !self.is_probed() {
            return;
        }
        if let Some(key) = live.timer.take() {
            self.worker.timers.cancel(key);
        }
        self.beat_after(BEAT);
    }

    fn beat_after(self: &Rc<Self>, delay: Duration) {
        let key = self.worker.after(delay, Due::Beat(Rc::downgrade(self)));
        self.liveness.timer.set(Some(key));
    }

    /// True when the server is another proxy.
    fn is_probed(&self) -> bool {
        self.is_h2() && self.upstream().is_some_and(|u| u.endpoint.identity.is_some())
    }

    /// Time has passed since a request was sent, or since the last look.
    pub fn beat(self: &Rc<Self>) {
        let live = &self.liveness;
        live.timer.set(None);
        if self.is_over() || self.load() == 0 && live.suspect.borrow().is_none() {
            live.probes.set(0);
            live.suspect.take();
            return;
        }
        if live.heard.replace(false) {
            if live.probes.replace(0) > 0 {
                // Streams may be silent for long.
                live.patience.set((live.patience.get() * 2 + 1).min(SLOWEST));
            }
            live.suspect.take();
            return self.beat_after(BEAT * (live.patience.get() + 1));
        }
        let probes = live.probes.get() + 1;
        live.probes.set(probes);
        if probes == 1 {
            self.send_ping();
        } else if probes == 1 + SUSPECT {
            self.suspect();
        } else if probes > GIVE_UP {
            return self.give_up();
        }
        self.beat_after(BEAT);
    }

    fn send_ping(self: &Rc<Self>) {
        if let Codec::H2(h2) = &mut *self.codec.borrow_mut() {
            ready_output(h2);
            h2.ping(*b"weftlive");
        }
        self.touch();
    }

    /// The server does not answer: whoever can goes elsewhere.
    fn suspect(self: &Rc<Self>) {
        let Some(upstream) = self.upstream() else { return };
        tracing::debug!(endpoint = %upstream.endpoint.addr, "endpoint does not answer HTTP/2 PING; others are preferred");
        *self.liveness.suspect.borrow_mut() = Some(upstream.suspect());
        for exchange in self.exchanges() {
            exchange.leave_suspect();
        }
    }

    fn give_up(self: &Rc<Self>) {
        let message = format!("no answer to HTTP/2 PING for {:?}; connection given up", BEAT * GIVE_UP);
        self.closing.set(Closing::Abort);
        let upstream = self.upstream();
        if let Some(upstream) = &upstream {
            tracing::info!(endpoint = %upstream.endpoint.addr, "{message}");
            upstream.connection_gone(self);
            upstream.back_off();
        }
        self.liveness.suspect.take();
        for exchange in self.take_streams() {
            exchange.server_gone(&Lost { reset: None, unprocessed: false, silent: true, message: message.clone() });
        }
        if let Some(upstream) = &upstream {
            // From here on the back-off tells when it is tried again.
            upstream.load.renew(Instant::now());
        }
        self.wake();
    }
}
