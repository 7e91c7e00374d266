//! Chaos: random Modules, images, faults, kills, reboots and power cuts on two nodes with real kernels.
//!
//! A storm of random steps is followed by a calm in which everything is healed. Then both kernels must hold exactly what
//! the model says, the cluster must say so too, and whatever ever left a kernel must have left by an order that stood in
//! its node's NodeModulesConfig, or by the hand of this test.
//!
//! `KMM_CHAOS_SECONDS` says for how long (60 by default; `make test` takes 600), `KMM_CHAOS_SEED` which walk is taken.
//! The seed is printed; timing is not part of it, so the same seed repeats the steps and not every race.

#[path = "../support/mod.rs"]
mod support;

mod again;
mod dice;
mod held;
mod images;
mod model;
mod node;
mod orders;
mod right;
mod storm;
mod world;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use dice::Dice;
use storm::Storm;
use world::World;

/// One test at a time: each has two machines and a control plane.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A number from the environment.
#[allow(clippy::disallowed_methods, reason = "the test's own settings")]
fn setting(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => {
            Ok(Some(text.parse().with_context(|| format!("{name} is `{text}`, not a whole number"))?))
        }
        _ => Ok(None),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_every_kernel_ends_with_what_is_wanted_and_nothing_leaves_without_an_order() -> Result<()> {
    let _turn = TURN.lock().await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
    let seed = setting("KMM_CHAOS_SEED")?.unwrap_or(clock);
    let seconds = Duration::from_secs(setting("KMM_CHAOS_SECONDS")?.unwrap_or(60));
    println!("KMM_CHAOS_SEED={seed} KMM_CHAOS_SECONDS={}", seconds.as_secs());
    let mut storm = Storm::new(World::start().await?, Dice::new(seed));
    let begun = Instant::now();
    let mut storms = 0;
    while storms == 0 || begun.elapsed() < seconds {
        storms += 1;
        if let Err(error) = storm.rage_and_calm().await {
            let error = error.context(format!("storm {storms}, KMM_CHAOS_SEED={seed}"));
            // What is told is long: the reason stands before it too.
            println!("{error:#}\n{}", storm.tell().await);
            return Err(error);
        }
    }
    println!("{storms} storms, {}", storm.summary());
    Ok(())
}
