//! The server's half of an exchange: what comes back, and what if nothing does.

use std::rc::Rc;

use weft_wire::{Headers, Response, Version, h2::Reason};

use super::{Exchange, Plan, Stage};
use crate::{
    http::{
        Failure, Kind, Lost,
        headers::{self, Fate},
    },
    io::Io,
    metrics::{Direction, ResponseClass},
};

impl Exchange {
    /// A 1xx head.
    pub fn response_informational(self: &Rc<Self>, head: &Response) {
        if self.state.borrow().status == 0 {
            self.front.send_informational(self.id, head);
        }
    }

    /// The final head of the response.
    pub fn response_head(self: &Rc<Self>, mut head: Response, end: bool) {
        if self.leave_unreachable(&head) {
            return;
        }
        {
            let mut s = self.state.borrow_mut();
            let s = &mut *s;
            if s.status != 0 || s.finished {
                return;
            }
            s.heard();
            s.status = head.status;
            s.head = None;
            s.kept = Vec::new();
            if self.grpc {
                s.grpc_status = headers::grpc_status(&head.headers);
            }
            if let Some(metrics) = &s.metrics {
                metrics.latency(head.status, self.started.elapsed());
            }
            if self.direction == Direction::Inbound {
                headers::strip_response(&mut head);
            }
            if let Some(plan) = &s.plan {
                for change in &plan.response {
                    change.apply(&mut head.headers);
                }
                if plan.downgraded {
                    headers::upgrade_response(&mut head);
                }
            }
        }
        self.settle_load();
        if self.direction == Direction::Outbound {
            let meshed = self.state.borrow().upstream.as_ref().is_some_and(|u| u.endpoint.identity.is_some());
            if headers::downgrade_response(&mut head, meshed) {
                self.front.drain();
            }
        }
        self.front.send_response(self.id, &head, end);
        if end {
            self.response_ended();
        }
    }

    /// A piece of the response's body. True when the server is to be paused.
    pub fn response_data(self: &Rc<Self>, data: &[u8], flow: u32, end: bool) -> bool {
        self.state.borrow_mut().heard();
        self.front.send_data(self.id, data, end);
        if end {
            self.release_back(flow);
            self.response_ended();
            return false;
        }
        if self.front.is_full(self.id, self) {
            self.state.borrow_mut().owed_response += flow;
            return true;
        }
        self.release_back(flow);
        false
    }

    /// The response ends, with trailers if there are any.
    pub fn response_end(self: &Rc<Self>, trailers: Option<&Headers>) {
        if self.grpc
            && let Some(status) = trailers.and_then(headers::grpc_status)
        {
            self.state.borrow_mut().grpc_status = Some(status);
        }
        self.front.send_end(self.id, trailers);
        self.response_ended();
    }

    /// The proxy of the endpoint says that its application has not seen the request, or has died over one that may be
    /// repeated: it goes to another endpoint. The latter only once, since it may be the request that kills. When there is
    /// no other, nobody listens there any more, and discovery may bring one, as when the only pod of a service is replaced,
    /// all wait for that, or for the application to come back, as long as requests may wait at all. An application that
    /// is only slow to accept has its own reasons, and the others need not wait for one request's.
    fn leave_unreachable(self: &Rc<Self>, head: &Response) -> bool {
        if self.direction != Direction::Outbound {
            return false;
        }
        let Some(upstream) = self.state.borrow().upstream.clone() else { return false };
        let Some(fate) = headers::fate(head).filter(|_| upstream.endpoint.identity.is_some()) else {
            upstream.answered();
            return false;
        };
        let (conn, id) = {
            let mut s = self.state.borrow_mut();
            let s = &mut *s;
            let Stage::Sent { conn, id } = &s.stage else { return false };
            let may = fate != Fate::Lost || (s.is_safe() && !s.repeated);
            if s.finished || s.status != 0 || !may || !s.is_whole() {
                return false;
            }
            if !upstream.has_better() {
                let waits = |p: &Plan| p.to.may_change() && self.started.elapsed() < p.queue.failfast;
                if fate != Fate::Gone || !s.plan.as_ref().is_some_and(waits) {
                    return false;
                }
                // All its time counts, since it may come back here more than once.
                s.waits_since = Some(self.started);
                s.refusal = headers::error(head);
            }
            s.repeated |= fate == Fate::Lost;
            let sent = (conn.clone(), *id);
            s.again();
            sent
        };
        tracing::debug!(endpoint = %upstream.endpoint.addr, "its application cannot be reached; trying another one");
        upstream.back_off();
        conn.reset(id, Reason::CANCEL);
        self.move_on();
        true
    }

    /// Looks for another endpoint, for a request that has to be sent again.
    fn move_on(self: &Rc<Self>) {
        self.drop_load();
        let owed = {
            let mut s = self.state.borrow_mut();
            s.upstream = None;
            std::mem::take(&mut s.owed_request)
        };
        // What the old connection had not taken yet is kept here.
        self.front.release(self.id, owed);
        self.front.resume();
        self.dispatch();
    }

    /// The server has become suspect: a request that may be repeated, and of which nothing has come back, goes to another
    /// one.
    pub fn leave_suspect(self: &Rc<Self>) {
        let sent = {
            let mut s = self.state.borrow_mut();
            let s = &mut *s;
            let Stage::Sent { conn, id } = &s.stage else { return };
            let better = s.plan.as_ref().is_some_and(|p| p.to.has_trusted());
            if s.finished || s.status != 0 || !better || !s.is_whole() || !s.is_safe() || !s.request_done {
                return;
            }
            let sent = (conn.clone(), *id);
            s.again();
            sent
        };
        let (conn, id) = sent;
        conn.reset(id, Reason::CANCEL);
        self.move_on();
    }

    /// The server, or its connection, is gone.
    pub fn server_gone(self: &Rc<Self>, lost: &Lost) {
        enum Then {
            Nothing,
            Again,
            Discard,
            Propagate(Reason),
            Fail,
        }
        let then = {
            let mut s = self.state.borrow_mut();
            let s = &mut *s;
            let Stage::Sent { conn, .. } = &s.stage else { return };
            let reused = conn.is_reused();
            let both_h2 =
                self.front.is_h2() && conn.is_h2() && s.head.as_ref().is_none_or(|h| h.version == Version::H2);
            s.stage = Stage::Discarding;
            if s.finished {
                Then::Nothing
            } else if s.response_done {
                Then::Discard
            } else if s.status == 0
                && s.is_whole()
                && (lost.unprocessed || (s.is_safe() && (reused || lost.silent) && lost.reset.is_none()))
            {
                s.again();
                Then::Again
            } else if let Some(reason) = lost.reset.filter(|_| both_h2 || s.status != 0) {
                Then::Propagate(reason)
            } else if s.status != 0 {
                Then::Propagate(Reason::INTERNAL_ERROR)
            } else {
                Then::Fail
            }
        };
        match then {
            Then::Nothing => {}
            Then::Again => self.move_on(),
            Then::Discard => {
                // What the client still sends goes nowhere, but is taken.
                self.resume_request();
                self.settle();
            }
            Then::Propagate(reason) => {
                let class = lost.reset.map_or("unclassified", Reason::name);
                tracing::debug!(client = %self.front.io.peer(), "{}: {}", self.whom(), lost.message);
                self.record(ResponseClass::Error(class));
                self.front.reset(self.id, reason);
                self.finish();
            }
            Then::Fail => {
                let message = format!("{}: {}", self.whom(), lost.message);
                self.fail(&Failure::new(Kind::Io, message));
            }
        }
    }

    /// The server has switched protocols: what follows on both connections is passed through.
    pub fn tunnel(self: &Rc<Self>, head: Response, back: Rc<Io>, rest: Vec<u8>) {
        self.response_head(head, false);
        *self.front.tunnel.borrow_mut() = Some((back, rest));
        {
            let mut s = self.state.borrow_mut();
            s.stage = Stage::Discarding;
            s.response_done = true;
            s.request_done = true;
        }
        self.record(ResponseClass::Http);
        self.finish();
        self.front.wake();
    }

    /// The client's connection takes more: the server goes on.
    pub fn resume_response(self: &Rc<Self>) {
        let owed = std::mem::take(&mut self.state.borrow_mut().owed_response);
        self.release_back(owed);
        let conn = match &self.state.borrow().stage {
            Stage::Sent { conn, .. } => conn.clone(),
            _ => return,
        };
        conn.resume();
    }
}
