//! Pure decisions and knowledge: no client, no clock, no files, no environment.

pub mod claims;
pub mod conditions;
pub mod hash;
pub mod image;
pub mod kernel;
pub mod kmod;
pub mod label;
pub mod load;
pub mod mapping;
pub mod pin;
pub mod regexp;
pub mod selector;
pub mod taints;
pub mod template;
