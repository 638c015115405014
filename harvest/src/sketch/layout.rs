//! From "left of", "above" and "inside" to the cells of a grid.
//!
//! Every thing stands in a cell; a thing inside another shares its cell. An order on one axis fixes a smaller column
//! or row. What was not said is filled in: two things related on one axis are aligned on the other where that
//! contradicts nothing, every thing stands as far left and as high as it may, and of two things that would share a
//! cell the later mentioned one moves to the right.

use super::error::SketchError;
use super::grammar::Sentence;
use super::scene::{Axis, Order, Scene, ThingIndex};
use super::words::Extreme;

/// Columns and rows of the largest scene that a picture has room for.
pub(super) const MAX_CELLS_PER_AXIS: usize = 4;

/// The cell of a thing, counted from the left and from the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) column: usize,
    pub(super) row: usize,
}

/// Where every thing of a scene stands; indexed as [`Scene::things`].
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    pub(super) cells: Vec<Cell>,
    /// The thing that each thing is inside of.
    pub(super) holders: Vec<Option<ThingIndex>>,
    pub(super) num_columns: usize,
    pub(super) num_rows: usize,
}

impl Layout {
    /// Places every thing; `sentence` is the one that came last and takes the blame.
    pub(super) fn solve(scene: &Scene, sentence: Sentence) -> Result<Self, SketchError> {
        let no_room = |cause| SketchError::NoRoom {
            sentence: sentence.to_string(),
            cause,
        };
        let holders = holders(scene, sentence)?;
        let cell_owner = |thing: ThingIndex| holders[thing].unwrap_or(thing);
        let owners: Vec<ThingIndex> = (0..holders.len())
            .filter(|&thing| holders[thing].is_none())
            .collect();
        if owners.len() > MAX_CELLS_PER_AXIS * MAX_CELLS_PER_AXIS {
            return Err(no_room(
                "it describes more than 16 things that stand side by side",
            ));
        }
        let orders = scene.orders.iter().map(|order| Order {
            first: cell_owner(order.first),
            second: cell_owner(order.second),
            ..*order
        });
        let mut orders: Vec<Order> = orders.collect();
        let (columns, rows) = loop {
            let placed = (
                aligned_ranks(&orders, Axis::Horizontal, holders.len()),
                aligned_ranks(&orders, Axis::Vertical, holders.len()),
            );
            let (Some(columns), Some(rows)) = placed else {
                return Err(SketchError::Contradiction {
                    sentence: sentence.to_string(),
                });
            };
            let Some((first, second)) = shared_cell(&owners, &columns, &rows) else {
                break (columns, rows);
            };
            // Things in one column have no order between columns, so this one contradicts nothing.
            orders.push(Order {
                axis: Axis::Horizontal,
                first,
                second,
            });
        };
        let cells: Vec<Cell> = (0..holders.len())
            .map(cell_owner)
            .map(|owner| Cell {
                column: columns[owner],
                row: rows[owner],
            })
            .collect();
        let num_columns = cells.iter().map(|cell| cell.column + 1).max().unwrap_or(0);
        let num_rows = cells.iter().map(|cell| cell.row + 1).max().unwrap_or(0);
        if num_columns.max(num_rows) > MAX_CELLS_PER_AXIS {
            return Err(no_room("the scene is more than 4 things wide or high"));
        }
        Ok(Self {
            cells,
            holders,
            num_columns,
            num_rows,
        })
    }

    /// The outermost thing on one side; of several, the one that was mentioned first.
    pub(super) fn extreme(&self, extreme: Extreme) -> ThingIndex {
        let distance = |thing: &ThingIndex| {
            let Cell { column, row } = self.cells[*thing];
            match extreme {
                Extreme::Leftmost => column,
                Extreme::Rightmost => self.num_columns - column,
                Extreme::Highest => row,
                Extreme::Lowest => self.num_rows - row,
            }
        };
        (0..self.cells.len())
            .min_by_key(distance)
            .expect("a sentence describes at least one thing")
    }

    /// Whether something is inside the thing.
    pub(super) fn is_holder(&self, thing: ThingIndex) -> bool {
        self.holders.contains(&Some(thing))
    }
}

/// What each thing is inside of.
fn holders(scene: &Scene, sentence: Sentence) -> Result<Vec<Option<ThingIndex>>, SketchError> {
    let mut holders: Vec<Option<ThingIndex>> = vec![None; scene.things.len()];
    for containment in &scene.containments {
        let (inner, holder) = (containment.inner, containment.holder);
        if inner == holder || holders[holder] == Some(inner) {
            return Err(SketchError::Contradiction {
                sentence: sentence.to_string(),
            });
        }
        if holders[inner] == Some(holder) {
            continue;
        }
        let is_nested = holders[holder].is_some() || holders.contains(&Some(inner));
        if is_nested || holders[inner].is_some() || holders.contains(&Some(holder)) {
            let cause = "one thing fits inside another, not two, and not one inside one inside one";
            return Err(SketchError::NoRoom {
                sentence: sentence.to_string(),
                cause,
            });
        }
        holders[inner] = Some(holder);
    }
    Ok(holders)
}

/// The first two owners of cells that would stand in the same one.
fn shared_cell(
    owners: &[ThingIndex],
    columns: &[usize],
    rows: &[usize],
) -> Option<(ThingIndex, ThingIndex)> {
    owners.iter().enumerate().find_map(|(position, &first)| {
        let shares = |&&second: &&ThingIndex| {
            (columns[first], rows[first]) == (columns[second], rows[second])
        };
        owners[position + 1..]
            .iter()
            .find(shares)
            .map(|&second| (first, second))
    })
}

/// Column (or row) of each thing, with what is ordered on the other axis aligned on this one where possible.
/// `None` if the orders contradict each other.
fn aligned_ranks(orders: &[Order], axis: Axis, num_things: usize) -> Option<Vec<usize>> {
    let mut classes: Vec<usize> = (0..num_things).collect();
    let mut ranks = class_ranks(orders, axis, &classes)?;
    for order in orders.iter().filter(|order| order.axis != axis) {
        let (kept, merged) = (classes[order.first], classes[order.second]);
        let joined: Vec<usize> = classes
            .iter()
            .map(|&class| if class == merged { kept } else { class })
            .collect();
        if let Some(joined_ranks) = class_ranks(orders, axis, &joined) {
            (classes, ranks) = (joined, joined_ranks);
        }
    }
    Some(classes.iter().map(|&class| ranks[class]).collect())
}

/// Length of the longest chain of orders that ends at each class; `None` if the orders form a cycle.
fn class_ranks(orders: &[Order], axis: Axis, classes: &[usize]) -> Option<Vec<usize>> {
    let mut ranks = vec![0; classes.len()];
    // Without a cycle no chain is longer than the number of things, so the ranks are settled by then.
    for _ in 0..=classes.len() {
        let mut is_settled = true;
        for order in orders.iter().filter(|order| order.axis == axis) {
            let (first, second) = (classes[order.first], classes[order.second]);
            if ranks[second] <= ranks[first] {
                ranks[second] = ranks[first] + 1;
                is_settled = false;
            }
        }
        if is_settled {
            return Some(ranks);
        }
    }
    None
}
