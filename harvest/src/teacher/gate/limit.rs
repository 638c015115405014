//! How many requests may be in flight: additive increase, multiplicative decrease.

use std::time::Duration;

/// Where every teacher begins.
const START: f64 = 4.0;
/// What is left of the limit after a sign of overload.
const CUT: f64 = 0.75;
/// Replies that the latency is judged by, at least: chance lengths of replies even out.
const MIN_WINDOW: u32 = 16;
/// Replies of one size that its usual latency is judged by.
const MIN_OF_SIZE: u32 = 8;
/// Times its floor that the latency may take.
const MAX_RISE: f64 = 4.0;
/// A cut that helps takes at least this share off the latency.
const MIN_GAIN: f64 = 0.1;

/// The limit, moved by what becomes of requests.
///
/// It begins at 4 and grows by one with every answer until the first sign of overload, so that it doubles in the time
/// of one reply; from then on by one in as many answers as the limit is. It grows only while it is used. A sign of
/// overload takes a quarter off: a refusal for the rate or an overload, or a latency that has risen (see [`Latency`]).
/// Requests that were sent before the last cut tell nothing new, so a burst of refusals cuts once.
#[derive(Debug)]
pub(super) struct Limit {
    value: f64,
    ceiling: f64,
    is_starting: bool,
    /// Requests with lower numbers were sent before the last cut.
    cut_at: u64,
    latency: Latency,
}

impl Limit {
    pub(super) fn new(ceiling: usize) -> Self {
        let ceiling = ceiling.max(1) as f64;
        Self {
            value: START.min(ceiling),
            ceiling,
            is_starting: true,
            cut_at: 0,
            latency: Latency::default(),
        }
    }

    #[expect(clippy::cast_sign_loss, reason = "the limit is at least 1")]
    pub(super) fn get(&self) -> usize {
        self.value as usize
    }

    /// Request `number` was answered; `was_full` where the limit was reached while it was in flight.
    pub(super) fn succeeded(&mut self, number: u64, was_full: bool) {
        if was_full && number >= self.cut_at {
            let step = if self.is_starting {
                1.0
            } else {
                1.0 / self.value
            };
            self.value = (self.value + step).min(self.ceiling);
        }
    }

    /// Request `number` was refused for the rate or an overload; `next` is the number of the next request.
    pub(super) fn overloaded(&mut self, number: u64, next: u64) {
        if number >= self.cut_at {
            self.cut(next);
        }
    }

    /// The request was answered or lost after this time; `next` is the number of the next request.
    pub(super) fn took(&mut self, timed: Timed, next: u64) {
        if timed.number < self.cut_at {
            return;
        }
        if let Some(num_in_flight) = self.latency.add(timed, self.get()) {
            self.value = self.value.min(num_in_flight);
            self.cut(next);
        }
    }

    fn cut(&mut self, next: u64) {
        self.is_starting = false;
        self.value = (self.value * CUT).max(1.0);
        self.cut_at = next;
        self.latency.restart();
    }
}

/// How long a request took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timed {
    /// The request.
    pub(super) number: u64,
    /// The most tokens that it can take.
    pub(super) tokens: u64,
    /// Requests in flight when it was sent, itself included.
    pub(super) num_in_flight: usize,
    pub(super) latency: Duration,
}

/// The latency against its own floor.
///
/// Replies are judged in windows of as many as the limit, at least 16. Requests of the same size, to the next power of
/// two of the tokens that they can take, are compared with each other alone; the floor of a size is the lowest mean of a
/// window. Means are geometric: one slow reply among many is none. A window whose mean is over four times the floor is
/// a sign of overload, and the cut is from what was in flight in that window. Where the window after such a cut is not a tenth faster, the latency is not of our making: the
/// floor moves up to it and nothing is cut, so a server that is slow, or becomes slow, is not given up.
#[derive(Debug, Default)]
struct Latency {
    sizes: Vec<Size>,
    /// Replies in this window: those so far, and those that make it full.
    num_replies: u32,
    window: u32,
    num_in_flight: usize,
    /// Logarithm of the rise that the last cut was for, until it is known whether it helped.
    cut_for: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Size {
    sum: f64,
    num_replies: u32,
    floor: Option<f64>,
}

impl Latency {
    /// Adds a reply. Where a window is full and its latency too high, returns how many were in flight in it on average.
    fn add(&mut self, timed: Timed, limit: usize) -> Option<f64> {
        if self.num_replies == 0 {
            self.window = (limit as u32).max(MIN_WINDOW);
        }
        let index = timed
            .tokens
            .checked_ilog2()
            .map_or(0, |log| log as usize + 1);
        if self.sizes.len() <= index {
            self.sizes.resize(index + 1, Size::default());
        }
        let size = &mut self.sizes[index];
        size.sum += timed.latency.as_secs_f64().max(1e-6).ln();
        size.num_replies += 1;
        self.num_replies += 1;
        self.num_in_flight += timed.num_in_flight;
        if self.num_replies < self.window {
            return None;
        }
        let num_in_flight = self.num_in_flight as f64 / f64::from(self.num_replies);
        let rise = self.rise();
        self.restart();
        if let Some(before) = self.cut_for.take()
            && rise > before + (1.0 - MIN_GAIN).ln()
        {
            self.accept(rise);
            return None;
        }
        let is_high = rise > MAX_RISE.ln();
        let may_cut = limit > 1;
        match (is_high, may_cut) {
            (true, true) => self.cut_for = Some(rise),
            (true, false) => self.accept(rise),
            (false, _) => {}
        }
        (is_high && may_cut).then_some(num_in_flight)
    }

    /// Logarithm of this window's latency over the floor; floors go down to it.
    fn rise(&mut self) -> f64 {
        let mut sum = 0.0;
        let mut num_judged = 0;
        for size in self.sizes.iter_mut().filter(|size| size.num_replies > 0) {
            let mean = size.sum / f64::from(size.num_replies);
            if let Some(floor) = size.floor {
                sum += (mean - floor) * f64::from(size.num_replies);
                num_judged += size.num_replies;
            }
            if size.num_replies >= MIN_OF_SIZE {
                size.floor = Some(size.floor.map_or(mean, |floor| floor.min(mean)));
            }
        }
        sum / f64::from(num_judged.max(1))
    }

    fn accept(&mut self, rise: f64) {
        for floor in self.sizes.iter_mut().filter_map(|size| size.floor.as_mut()) {
            *floor += rise;
        }
    }

    fn restart(&mut self) {
        (self.num_replies, self.num_in_flight) = (0, 0);
        for size in &mut self.sizes {
            (size.sum, size.num_replies) = (0.0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A server that answers in the order of arrival, a request after `latency(in flight when it was sent, number)`
    /// seconds, and a client that always sends as many as it may. Returns the limit after each answer.
    fn drive(
        limit: &mut Limit,
        num: u64,
        tokens: impl Fn(u64) -> u64,
        latency: impl Fn(usize, u64) -> f64,
    ) -> Vec<usize> {
        let mut in_flight = VecDeque::new();
        let mut next = limit.cut_at;
        let mut limits = Vec::new();
        while (limits.len() as u64) < num {
            while in_flight.len() < limit.get() {
                in_flight.push_back((next, in_flight.len() + 1));
                next += 1;
            }
            let (number, num_in_flight) = in_flight.pop_front().unwrap();
            limit.succeeded(number, true);
            let timed = Timed {
                number,
                tokens: tokens(number),
                num_in_flight,
                latency: Duration::from_secs_f64(latency(num_in_flight, number)),
            };
            limit.took(timed, next);
            limits.push(limit.get());
        }
        // What is left in flight is answered unseen.
        limit.cut_at = limit.cut_at.max(next);
        limits
    }

    #[test]
    fn it_doubles_until_the_first_sign_and_then_adds() {
        let mut limit = Limit::new(100);
        assert_eq!(limit.get(), 4);
        assert_eq!(drive(&mut limit, 12, |_| 10, |_, _| 0.1).last(), Some(&16));
        limit.overloaded(limit.cut_at, limit.cut_at + 16);
        assert_eq!(limit.get(), 12);
        assert_eq!(drive(&mut limit, 13, |_| 10, |_, _| 0.1).last(), Some(&13));
        assert_eq!(
            drive(&mut limit, 5_000, |_| 10, |_, _| 0.1).last(),
            Some(&100)
        );
    }

    #[test]
    fn a_burst_of_refusals_cuts_once_and_the_floor_is_one() {
        let mut limit = Limit::new(100);
        drive(&mut limit, 28, |_| 10, |_, _| 0.1);
        let (sent, next) = (limit.cut_at, limit.cut_at + 32);
        assert_eq!(limit.get(), 32);
        for number in sent..next {
            limit.overloaded(number, next);
        }
        assert_eq!(limit.get(), 24);
        for number in sent..next {
            limit.succeeded(number, true);
        }
        assert_eq!(
            limit.get(),
            24,
            "answers to requests before the cut tell nothing"
        );
        for number in next..next + 30 {
            limit.overloaded(number, number + 1);
        }
        assert_eq!(limit.get(), 1);
    }

    #[test]
    fn a_limit_that_is_not_used_does_not_grow() {
        let mut limit = Limit::new(100);
        for number in 0..100 {
            limit.succeeded(number, false);
        }
        assert_eq!(limit.get(), 4);
        assert_eq!(Limit::new(2).get(), 2);
    }

    #[test]
    fn a_queue_behind_one_worker_is_kept_short() {
        let mut limit = Limit::new(400);
        let limits = drive(
            &mut limit,
            20_000,
            |_| 10,
            |in_flight, _| 0.01 * in_flight as f64,
        );
        let settled = &limits[10_000..];
        let (least, most) = (settled.iter().min().unwrap(), settled.iter().max().unwrap());
        assert!(*least >= 4 && *most <= 100, "{least}..{most}");
    }

    #[test]
    fn a_latency_that_is_merely_high_or_of_varied_sizes_is_no_sign() {
        for seconds in [0.001, 60.0] {
            let mut limit = Limit::new(50);
            let limits = drive(&mut limit, 5_000, |_| 10, |_, _| seconds);
            assert_eq!(limits[60..].iter().min(), Some(&50), "{seconds}");
        }
        // Batches from 1 to 2,000 rows in any order, whose latency follows their size.
        let size = |number: u64| number.wrapping_mul(2_654_435_761) % 2_000 + 1;
        let mut limit = Limit::new(50);
        let limits = drive(&mut limit, 5_000, size, |_, number| {
            size(number) as f64 * 0.01
        });
        assert_eq!(limits[60..].iter().min(), Some(&50));
    }

    #[test]
    fn replies_of_chance_lengths_are_no_sign() {
        let mut limit = Limit::new(50);
        // From 0.1 to 10 seconds, evenly in the logarithm.
        let chance = |number: u64| {
            (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11) as f64 / (1_u64 << 53) as f64
        };
        let limits = drive(
            &mut limit,
            20_000,
            |_| 10,
            |_, number| 0.1 * 100_f64.powf(chance(number)),
        );
        assert!(
            limits[1_000..].iter().all(|&limit| limit >= 37),
            "{:?}",
            limits.iter().min()
        );
    }

    #[test]
    fn a_server_that_becomes_slow_for_good_is_not_given_up() {
        let mut limit = Limit::new(50);
        let slow_from = |number| if number < 500 { 0.1 } else { 2.0 };
        let limits = drive(&mut limit, 4_000, |_| 10, |_, number| slow_from(number));
        assert_eq!(
            limits[400..].iter().min(),
            Some(&37),
            "one cut, which does not help"
        );
        assert_eq!(limits.last(), Some(&50));
    }
}
