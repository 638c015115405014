//! Data set readers.
