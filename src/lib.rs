//! mbcopy
