//! Bytes between two connections, in both directions, until both have ended.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use crate::io::{Input, Io};

/// Reads in one turn, before other connections get theirs.
const READS_PER_TURN: u32 = 4;

/// One direction.
#[derive(Default)]
struct Half {
    /// The source has ended.
    ended: bool,
    /// The sink was told.
    told: bool,
}

/// Relays until both sides have ended or one breaks. The end of one direction is passed on and the other goes on (half
/// close); an error is passed on as a reset. What one side sends is read only as fast as the other takes it.
pub async fn relay(a: &Io, b: &Io) {
    let (mut there, mut back) = (Half::default(), Half::default());
    let result = poll_fn(|cx| {
        for _ in 0..READS_PER_TURN {
            let moved = step(a, b, &mut there, cx)? | step(b, a, &mut back, cx)?;
            if there.told && back.told {
                return Poll::Ready(io::Result::Ok(()));
            }
            if !moved {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    if let Err(error) = result {
        tracing::debug!(from = %a.peer(), to = %b.peer(), %error, "relay broke off");
        a.failed(&error);
        b.failed(&error);
        a.abort_on_close();
        b.abort_on_close();
    }
}

/// Moves one read's worth: true when something happened.
fn step(from: &Io, to: &Io, half: &mut Half, cx: &mut Context<'_>) -> io::Result<bool> {
    if half.told {
        return Ok(false);
    }
    match to.poll_flush(cx) {
        Poll::Pending => return Ok(false),
        Poll::Ready(result) => result?,
    }
    if half.ended {
        return match to.poll_shutdown(cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(result) => {
                half.told = true;
                // A peer that is gone altogether needs no end.
                match result {
                    Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
                    _ => Ok(true),
                }
            }
        };
    }
    let mut input = Input::take();
    match from.poll_read(cx, &mut input) {
        Poll::Pending => Ok(false),
        Poll::Ready(Err(error)) => Err(error),
        Poll::Ready(Ok(0)) => {
            half.ended = true;
            Ok(true)
        }
        Poll::Ready(Ok(_)) => {
            to.write(input.plain());
            Ok(true)
        }
    }
}
