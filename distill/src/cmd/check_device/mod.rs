//! `distill check-device`: what a device computes beside the CPU and beside values that were computed elsewhere.

mod step;
mod training;

use std::path::PathBuf;

use crate::cli::print;
use crate::device::Devices;
use crate::error::{Error, Status};
use crate::golden::{self, Comparison};
use crate::student::parity;

/// Largest difference where one side computes in bf16.
const BF16_TOLERANCE: f64 = 0.15;

/// The verb's command line.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// `cpu`, or `cuda:0` and so on in a build with feature `cuda`; `cuda:0,cuda:1` splits steps over both.
    #[arg(long, default_value = "cpu")]
    device: Devices,
    /// A file of expected losses, as tests/golden/armada_losses.json.
    #[arg(long)]
    golden: Option<PathBuf>,
    /// A folder of tiny checkpoints with what `transformers` computed from them, as tests/fixtures.
    #[arg(long)]
    fixtures: Option<PathBuf>,
    /// Largest difference relative to the largest expected entry of a tensor; 0.15 where products are bf16.
    #[arg(long, default_value_t = 1e-3)]
    tolerance: f64,
}

/// One line of the table.
struct Line {
    name: String,
    count: usize,
    /// NaN where an entry is.
    difference: f64,
    tolerance: f64,
}

impl Arguments {
    /// Prints the table on standard output.
    ///
    /// # Errors
    /// [`Error::DeviceDiffers`] where a difference is over the tolerance.
    pub fn run(self) -> Result<Status, Error> {
        let devices = self.device.open()?;
        let device = &devices[0];
        let mut table = Table::new(self.tolerance)?;
        if let Some(path) = &self.golden {
            let json = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
            let comparisons = golden::compare(device, &json)?;
            table.add(comparisons.into_iter().map(|comparison| Comparison {
                case: "golden".to_owned(),
                ..comparison
            }))?;
        }
        table.add(step::compare(device)?)?;
        if let Some(fixtures) = &self.fixtures {
            table.add(parity::compare(device, fixtures)?)?;
            for comparisons in training::compare(&devices, fixtures) {
                table.add(comparisons?)?;
            }
        }
        match table.num_over {
            0 => Ok(Status::Done),
            count => Err(Error::DeviceDiffers {
                device: self.device.to_string(),
                count,
                tolerance: self.tolerance,
            }),
        }
    }
}

/// Prints lines as they come: a device that fails midway has told what worked.
struct Table {
    tolerance: f64,
    num_over: usize,
}

impl Table {
    fn new(tolerance: f64) -> Result<Self, Error> {
        print(&format!(
            "{:48}  {:>7}  {:>12}  {:>9}\n",
            "quantity", "tensors", "difference", "allowed"
        ))?;
        Ok(Self {
            tolerance,
            num_over: 0,
        })
    }

    /// One line for each case and quantity.
    fn add(&mut self, comparisons: impl IntoIterator<Item = Comparison>) -> Result<(), Error> {
        let mut lines: Vec<Line> = Vec::new();
        for comparison in comparisons {
            let name = format!("{} {}", comparison.case, comparison.quantity);
            let difference = comparison.relative();
            match lines.iter_mut().find(|line| line.name == name) {
                Some(line) => {
                    line.count += 1;
                    line.difference = largest(line.difference, difference);
                }
                None => lines.push(Line {
                    tolerance: if comparison.quantity.ends_with(parity::IN_BF16) {
                        BF16_TOLERANCE
                    } else {
                        self.tolerance
                    },
                    name,
                    count: 1,
                    difference,
                }),
            }
        }
        for line in lines {
            let is_over = line.difference.is_nan() || line.difference > line.tolerance;
            self.num_over += usize::from(is_over);
            let mut text = format!(
                "{:48}  {:>7}  {:>12.3e}  {:>9}",
                line.name, line.count, line.difference, line.tolerance
            );
            text.push_str(if is_over { "  OVER\n" } else { "\n" });
            print(&text)?;
        }
        Ok(())
    }
}

/// `max` that keeps NaN.
fn largest(one: f64, two: f64) -> f64 {
    if one.is_nan() || two.is_nan() {
        f64::NAN
    } else {
        one.max(two)
    }
}
