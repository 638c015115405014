//! One verb per file.

pub mod check_device;
pub mod compare;
pub mod eval;
pub mod export;
pub mod predict;
pub mod train;
