//! Kernel modules for fleets of Kubernetes clusters.
//!
//! One executable runs as Hub manager, Spoke manager, single-cluster manager or node worker.
//! Decisions flow in one direction, and every object has one writer for each part of it:
//!
//! ```text
//! Hub     ManagedCluster claims + ManagedClusterModule → images → one ManifestWork per cluster
//! Spoke   Module + Node + image digest → NodeModulesConfig.spec, one planner keyed by node
//! Worker  NodeModulesConfig.spec + kernel → load or unload → NodeModulesConfig.status
//! Spoke   NodeModulesConfig.status → node labels → Module.status
//! Hub     ManifestWork feedback → ManagedClusterModule.status
//! ```
//!
//! Two rules hold everywhere. Absence is never an order: a module is unloaded only where an object says that it
//! must go. And nothing is written when nothing changed.
//!
//! The rooms of the house, each importing only what stands before it:
//!
//! - [`api`]: wire types of every kind and every shared name; imports nothing of ours.
//! - [`core`]: decisions and knowledge without client, clock, files or environment.
//! - [`oci`]: registries and image layers.
//! - [`runtime`]: clients, stores, watches, leases, servers: what every controller needs.
//! - [`images`]: which digest an image has.
//! - [`admission`]: the policies of the API server that security rests on, kept there.
//! - [`hub`], [`spoke`], [`worker`]: the roles; none of them knows another.
//! - [`cli`]: arguments and environment → settings → dispatch; knows all.

pub mod admission;
pub mod api;
pub mod cli;
pub mod core;
pub mod hub;
pub mod images;
pub mod oci;
pub mod runtime;
pub mod spoke;
pub mod worker;
