//! The worker on a real kernel: the executable in a virtual machine, real module files from a real registry, orders and
//! reports through a real API server.

#[path = "../support/mod.rs"]
mod support;

mod checks;
mod credentials;
mod disk;
mod failing;
mod fast_reboot;
mod firmware;
mod hanging;
mod in_tree;
mod killed;
mod lasting;
mod life;
mod loading;
mod modprobe;
mod oracle;
mod policies;
mod publishing;
mod pulling;
mod special;
mod unloading;
mod waiting;
mod world;
