//! How much of everything that a budget limits.

use serde::{Deserialize, Serialize};

use crate::config::PriceConfig;
use crate::teacher::Usage;

/// Parts of the currency that are counted: integers add up whatever their order, and the price of one token is whole.
const PARTS: f64 = 1e12;

/// Requests, tokens and money; sums stay at the largest number instead of overflowing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Amount {
    /// Requests sent.
    pub requests: u64,
    /// Tokens of prompts and replies.
    pub tokens: u64,
    /// Money, in millionths of a millionth of the currency.
    pub cost: u64,
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self {
        requests: 0,
        tokens: 0,
        cost: 0,
    };

    /// What this usage takes at this price; money is rounded up.
    pub fn of(usage: Usage, price: &PriceConfig) -> Self {
        let tokens = |number: u64, per_million: f64| number as f64 * per_million / 1e6;
        let cost = usage.requests as f64 * price.per_request
            + tokens(usage.tokens_in, price.input_per_million)
            + tokens(usage.tokens_out, price.output_per_million);
        Self {
            requests: usage.requests,
            tokens: usage.tokens_in.saturating_add(usage.tokens_out),
            // What the sum is off by is far below a part, and must not become one.
            cost: whole_parts((cost * PARTS - 1e-3).ceil()),
        }
    }

    pub(crate) fn of_cost(cost: f64) -> Self {
        Self {
            cost: whole_parts(cost * PARTS),
            ..Self::ZERO
        }
    }

    /// Money in the currency.
    pub fn cost(&self) -> f64 {
        self.cost as f64 / PARTS
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            tokens: self.tokens.saturating_add(other.tokens),
            cost: self.cost.saturating_add(other.cost),
        }
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            tokens: self.tokens.saturating_sub(other.tokens),
            cost: self.cost.saturating_sub(other.cost),
        }
    }
}

#[expect(
    clippy::cast_sign_loss,
    reason = "no price is negative, and what is below zero is zero"
)]
fn whole_parts(parts: f64) -> u64 {
    parts as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_exact_to_the_token_and_rounded_up() {
        let price = PriceConfig {
            input_per_million: 0.15,
            output_per_million: 0.6,
            per_request: 0.000_1,
        };
        let usage = |requests, tokens_in, tokens_out| Usage {
            requests,
            tokens_in,
            tokens_out,
        };
        let cost = |usage| Amount::of(usage, &price).cost;
        assert_eq!(cost(usage(0, 1, 0)), 150_000);
        assert_eq!(cost(usage(1, 1_000_000, 1_000_000)), 750_100_000_000);
        assert_eq!(Amount::of(usage(2, 3, 4), &price).tokens, 7);
        let third = PriceConfig {
            input_per_million: 0.000_001 / 3.0,
            ..PriceConfig::default()
        };
        assert_eq!(Amount::of(usage(1, 1, 0), &third).cost, 1);
        assert_eq!(Amount::of(usage(1, 1, 1), &PriceConfig::default()).cost, 0);
        assert_eq!(
            Amount::of(usage(1, u64::MAX, u64::MAX), &price).tokens,
            u64::MAX
        );
    }
}
