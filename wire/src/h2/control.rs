//! Receiving frames that steer streams and the connection: RST_STREAM, WINDOW_UPDATE, PING, GOAWAY, SETTINGS.

use super::{
    Connection, Error, Event, Reason, StreamId,
    connection::{DRAIN_PING, Drain, Role},
    frame::{self, Head, MAX_FRAME_SIZE, MAX_WINDOW, MIN_FRAME_SIZE, flag, kind, setting},
    receive::{error, protocol},
    stream::Ended,
};

impl Connection {
    pub(super) fn rst_stream(&mut self, head: &Head, payload: &[u8]) -> Result<Option<Event<'static>>, Error> {
        let id = head.id;
        if self.is_idle(id) {
            return protocol("RST_STREAM on an idle stream");
        }
        let code = frame::number(payload).map_or(0, |(n, _)| n);
        let known = self.streams.key(id).and_then(|key| Some((key, self.streams.get(key)?)));
        let Some((key, stream)) = known.filter(|(_, s)| !s.is_over()) else {
            return self.guard.idle().map(|()| None);
        };
        let unanswered = !stream.answered;
        self.drop_stream(key);
        self.streams.remember(id, Ended::ByPeer);
        if unanswered && self.role == Role::Server {
            self.guard.reset()?;
        }
        Ok(Some(Event::Reset { id, reason: Reason(code) }))
    }

    pub(super) fn window_update(&mut self, head: &Head, payload: &[u8]) -> Result<(), Error> {
        self.guard.update()?;
        let increment = i64::from(frame::number(payload).map_or(0, |(n, _)| n & MAX_WINDOW));
        let too_large = |window: i64| window + increment > i64::from(MAX_WINDOW);
        if head.id == 0 {
            if increment == 0 {
                return protocol("a window update by nothing");
            }
            if too_large(self.send_window) {
                return error(Reason::FLOW_CONTROL_ERROR, "the connection's window exceeds 2^31-1");
            }
            self.send_window += increment;
            self.drain_ready();
            return Ok(());
        }
        if self.is_idle(head.id) {
            return protocol("WINDOW_UPDATE on an idle stream");
        }
        let Some(key) = self.streams.key(head.id) else { return Ok(()) };
        let Some(stream) = self.streams.get_mut(key).filter(|s| !s.is_over()) else { return Ok(()) };
        if increment == 0 {
            return self.stream_error(head.id, Reason::PROTOCOL_ERROR);
        }
        if too_large(stream.send_window) {
            return self.stream_error(head.id, Reason::FLOW_CONTROL_ERROR);
        }
        stream.send_window += increment;
        self.make_ready(key);
        self.drain_ready();
        Ok(())
    }

    pub(super) fn pinged(&mut self, head: &Head, payload: &[u8]) -> Result<Option<Event<'static>>, Error> {
        if !head.has(flag::ACK) {
            self.guard.idle()?;
            self.acknowledge(kind::PING, payload)?;
        } else if self.drain == Drain::Announced && payload == DRAIN_PING {
            self.finish_drain();
        } else if self.pings > 0 {
            self.pings -= 1;
            return Ok(Some(Event::Pong));
        } else {
            self.guard.idle()?;
        }
        Ok(None)
    }

    pub(super) fn gone_away(&mut self, payload: &[u8]) -> Result<Option<Event<'static>>, Error> {
        self.guard.idle()?;
        let numbers = frame::number(payload).and_then(|(last, rest)| Some((last, frame::number(rest)?.0)));
        let Some((last, code)) = numbers else { return error(Reason::FRAME_SIZE_ERROR, "a frame of a wrong size") };
        let last = last & frame::MAX_ID;
        // It must not rise; a peer that lets it rise has refused streams already, and that stays.
        let last = self.peer_going.map_or(last, |before| before.min(last));
        self.peer_going = Some(last);
        if self.role == Role::Client {
            let mut refused: Vec<StreamId> =
                self.streams.iter().filter(|s| s.id > last && !s.is_over()).map(|s| s.id).collect();
            refused.sort_unstable();
            for id in refused {
                if let Some(key) = self.streams.key(id) {
                    self.drop_stream(key);
                    self.streams.remember(id, Ended::ResetHere);
                    self.events.push_back(Event::Reset { id, reason: Reason::REFUSED_STREAM });
                }
            }
        }
        Ok(Some(Event::GoAway { last, reason: Reason(code) }))
    }

    pub(super) fn settings(&mut self, head: &Head, payload: &[u8]) -> Result<Option<Event<'static>>, Error> {
        if head.has(flag::ACK) {
            if self.acknowledged {
                return protocol("SETTINGS acknowledged that were not sent");
            }
            // From now on the peer keeps to our values instead of the defaults.
            let before = self.initial_recv_window();
            self.acknowledged = true;
            let change = self.initial_recv_window() - before;
            for (_, stream) in self.streams.iter_mut() {
                stream.recv_window += change;
            }
            self.decoder.set_allowed(self.limits.hpack_table);
            return Ok(None);
        }
        self.guard.idle()?;
        if !self.settled {
            self.settled = true;
            // Without a value there is no limit.
            self.peer_streams = u32::MAX;
        }
        let mut window = self.peer_window;
        for entry in payload.chunks_exact(6) {
            let [a, b, value @ ..] = entry else { continue };
            let Some((value, _)) = frame::number(value) else { continue };
            match u16::from_be_bytes([*a, *b]) {
                setting::HEADER_TABLE_SIZE => self.encoder.set_max(value as usize),
                setting::ENABLE_PUSH if value > 1 || value == 1 && self.role == Role::Client => {
                    return protocol("SETTINGS_ENABLE_PUSH of a wrong value");
                }
                setting::MAX_CONCURRENT_STREAMS => self.peer_streams = value,
                setting::INITIAL_WINDOW_SIZE if value > MAX_WINDOW => {
                    return error(Reason::FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE over 2^31-1");
                }
                setting::INITIAL_WINDOW_SIZE => window = i64::from(value),
                setting::MAX_FRAME_SIZE if !(MIN_FRAME_SIZE..=MAX_FRAME_SIZE).contains(&value) => {
                    return protocol("SETTINGS_MAX_FRAME_SIZE of a wrong value");
                }
                setting::MAX_FRAME_SIZE => self.peer_frame = value as usize,
                _ => {}
            }
        }
        // Once, however often the frame changes it: every stream has to follow.
        self.change_window(window)?;
        self.acknowledge(kind::SETTINGS, &[])?;
        self.drain_ready();
        Ok(Some(Event::Settings))
    }

    /// A new initial window changes that of every stream, to below zero if need be (RFC 9113 §6.9.2).
    fn change_window(&mut self, window: i64) -> Result<(), Error> {
        let change = window - self.peer_window;
        self.peer_window = window;
        if change == 0 {
            return Ok(());
        }
        let mut keys = Vec::new();
        for (key, stream) in self.streams.iter_mut() {
            stream.send_window += change;
            if stream.send_window > i64::from(MAX_WINDOW) {
                return error(Reason::FLOW_CONTROL_ERROR, "a stream's window exceeds 2^31-1");
            }
            if change > 0 && !stream.queue.is_empty() {
                keys.push(key);
            }
        }
        keys.into_iter().for_each(|key| self.make_ready(key));
        Ok(())
    }
}
