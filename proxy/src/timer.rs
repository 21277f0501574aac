//! Deadlines of requests and pools, one ordered list a thread.
//!
//! A request's deadline is set and taken away again thousands of times a second, nearly always before it is due. So
//! there is one sleeping task a thread for all of them, and deadlines are rounded up to [`TICK`].

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    task::{Poll, Waker},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

/// Resolution of deadlines.
pub const TICK: Duration = Duration::from_millis(5);

/// Identifies a deadline that was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    tick: u64,
    number: u64,
}

/// Deadlines, each with what to do then.
pub struct Timers<T> {
    start: Instant,
    number: Cell<u64>,
    entries: RefCell<BTreeMap<Key, T>>,
    /// The tick that the sleeping task waits for.
    armed: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

impl<T> Timers<T> {
    /// No deadlines.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            number: Cell::new(0),
            entries: RefCell::default(),
            armed: Cell::new(u64::MAX),
            waker: RefCell::default(),
        }
    }

    /// Sets a deadline.
    pub fn after(&self, delay: Duration, value: T) -> Key {
        let due = self.start.elapsed().saturating_add(delay);
        let tick = u64::try_from(due.as_millis() / TICK.as_millis() + 1).unwrap_or(u64::MAX);
        let number = self.number.get();
        self.number.set(number + 1);
        let key = Key { tick, number };
        self.entries.borrow_mut().insert(key, value);
        if tick < self.armed.get()
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
        key
    }

    /// When a tick begins. What is too far away to be told is looked at again in a year.
    fn at(&self, tick: u64) -> Instant {
        const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        let after = Duration::from_millis(tick.saturating_mul(5));
        let far = Instant::now() + YEAR;
        self.start.checked_add(after).unwrap_or(far).min(far)
    }

    /// Takes a deadline away, if it was not due yet.
    pub fn cancel(&self, key: Key) -> Option<T> {
        self.entries.borrow_mut().remove(&key)
    }

    /// Waits for the next deadlines that are due.
    pub async fn due(&self) -> Vec<T> {
        let mut sleep: Option<std::pin::Pin<Box<Sleep>>> = None;
        std::future::poll_fn(|cx| {
            loop {
                let now = Instant::now().duration_since(self.start).as_millis() / TICK.as_millis();
                let mut due = Vec::new();
                let mut entries = self.entries.borrow_mut();
                while let Some(entry) = entries.first_entry()
                    && u128::from(entry.key().tick) <= now
                {
                    due.push(entry.remove());
                }
                if !due.is_empty() {
                    return Poll::Ready(due);
                }
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                let Some((next, _)) = entries.first_key_value() else {
                    self.armed.set(u64::MAX);
                    return Poll::Pending;
                };
                self.armed.set(next.tick);
                let at = self.at(next.tick);
                let sleep = sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
                if sleep.deadline() != at {
                    sleep.as_mut().reset(at);
                }
                if sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self::new()
    }
}

use std::future::Future as _;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn due_in_order_and_cancelled_ones_never() {
        let timers = Timers::new();
        timers.after(Duration::from_millis(300), "late");
        let cancelled = timers.after(Duration::from_millis(100), "cancelled");
        timers.after(Duration::from_millis(200), "early");
        assert_eq!(timers.cancel(cancelled), Some("cancelled"));
        assert_eq!(timers.cancel(cancelled), None);
        assert_eq!(timers.due().await, ["early"]);
        assert_eq!(timers.due().await, ["late"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_life_and_long_deadlines_do_no_harm() {
        let timers = Timers::new();
        timers.after(Duration::MAX, "never");
        tokio::time::advance(Duration::from_secs(300 * 24 * 60 * 60)).await;
        timers.after(Duration::from_secs(1), "soon");
        assert_eq!(timers.due().await, ["soon"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_deadline_wakes_the_sleeper() {
        let timers = std::rc::Rc::new(Timers::new());
        timers.after(Duration::from_secs(60), 2);
        let sleeper = timers.clone();
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async move {
                let first = tokio::task::spawn_local(async move { sleeper.due().await });
                tokio::task::yield_now().await;
                timers.after(Duration::from_secs(1), 1);
                assert_eq!(first.await.unwrap(), [1]);
            })
            .await;
    }
}
