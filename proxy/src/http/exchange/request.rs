//! The client's half of an exchange: what it sends after the head, and what if it goes away.

use std::rc::Rc;

use weft_wire::{Headers, h2::Reason};

use super::{Exchange, HOLD, Stage};
use crate::metrics::{Direction, ResponseClass};

impl Exchange {
    /// A piece of the request's body. True when the client is to be paused.
    pub fn request_data(self: &Rc<Self>, data: &[u8], flow: u32, end: bool) -> bool {
        let sent = {
            let mut s = self.state.borrow_mut();
            let s = &mut *s;
            s.heard();
            if end {
                s.ended = Some(None);
            }
            match &s.stage {
                Stage::Waiting if !s.finished => {
                    s.held.extend_from_slice(data);
                    s.held_flow += flow;
                    return s.held.len() >= HOLD;
                }
                Stage::Sent { conn, id } => {
                    let sent = (conn.clone(), *id);
                    s.request_done |= end;
                    // Once the response has begun there is no second time.
                    if s.head.is_some() {
                        s.keep(data, self.direction);
                    }
                    Some(sent)
                }
                _ => {
                    s.request_done |= end;
                    None
                }
            }
        };
        let Some((conn, id)) = sent else {
            self.front.release(self.id, flow);
            if end {
                self.settle();
            }
            return false;
        };
        conn.send_data(id, data, end);
        if end {
            self.arm_response_timeout();
            self.front.release(self.id, flow);
            self.settle();
            return false;
        }
        if conn.is_full(id, self) {
            self.state.borrow_mut().owed_request += flow;
            return true;
        }
        self.front.release(self.id, flow);
        false
    }

    /// The request ends, with trailers if there are any.
    pub fn request_end(self: &Rc<Self>, mut trailers: Option<Headers>) {
        if let Some(trailers) = &mut trailers
            && self.direction == Direction::Inbound
        {
            // What only a proxy says it says in heads.
            trailers.retain(|name, _| !name.starts_with(b"l5d-"));
        }
        let sent = {
            let mut s = self.state.borrow_mut();
            let s = &mut *s;
            if s.request_done {
                return;
            }
            match &s.stage {
                Stage::Waiting => {
                    s.ended = Some(trailers);
                    return;
                }
                Stage::Sent { conn, id } => {
                    s.request_done = true;
                    let sent = (conn.clone(), *id);
                    // They are not kept, so the request cannot be sent again.
                    if trailers.is_some() {
                        s.forget_body();
                    }
                    Some(sent)
                }
                Stage::Discarding => {
                    s.request_done = true;
                    None
                }
            }
        };
        if let Some((conn, id)) = sent {
            conn.send_end(id, trailers.as_ref());
        }
        self.arm_response_timeout();
        self.settle();
    }

    /// The client is gone, or has cancelled.
    pub fn client_gone(self: &Rc<Self>, why: &'static str) {
        self.front.remove(self.id);
        self.record(ResponseClass::Error(why));
        self.leave_server(Reason::CANCEL);
        self.finish();
    }

    /// The server's connection takes more: the client goes on.
    pub fn resume_request(self: &Rc<Self>) {
        let owed = std::mem::take(&mut self.state.borrow_mut().owed_request);
        self.front.release(self.id, owed);
        self.front.resume();
    }
}
