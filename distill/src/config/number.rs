//! Numbers that are in range by construction.

use serde::{Deserialize, Serialize};

/// Refuses a size that no machine holds before anything is built from it.
pub(super) fn check_size(key: &str, value: usize, most: usize) -> Result<(), String> {
    if value > most {
        return Err(format!("`{key}` is {value}; it is at most {most}"));
    }
    Ok(())
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $what:literal, $inside:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(try_from = "f64", into = "f64")]
        pub struct $name(f64);

        impl $name {
            /// The number.
            pub fn get(self) -> f64 {
                self.0
            }
        }

        impl TryFrom<f64> for $name {
            type Error = String;

            fn try_from(value: f64) -> Result<Self, String> {
                let inside: fn(f64) -> bool = $inside;
                if inside(value) { Ok(Self(value)) } else { Err(format!(concat!("{} is not ", $what), value)) }
            }
        }

        impl From<$name> for f64 {
            fn from(number: $name) -> Self {
                number.0
            }
        }
    };
}

number!(
    /// A finite number over zero.
    Positive,
    "a finite number over 0",
    |value| value > 0.0 && value.is_finite()
);
number!(
    /// A finite number that is not negative.
    NotNegative,
    "a finite number of 0 or more",
    |value| value >= 0.0 && value.is_finite()
);
number!(
    /// A number from 0 to 1.
    Share,
    "a share from 0 to 1",
    |value| (0.0..=1.0).contains(&value)
);
