//! Pure decisions and knowledge: no client, no clock, no files, no environment.

pub mod image;
