//! A Node that is deleted and made again while its machine runs on.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kmm::api::LoadPolicy;
use kube::ResourceExt;

use crate::dice::Dice;
use crate::held::Wish;
use crate::images::ALL;
use crate::storm::Storm;
use crate::support::eventually;
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_deleted_and_made_again_under_its_name_keeps_what_its_kernel_holds() -> Result<()> {
    let _turn = crate::TURN.lock().await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut storm = Storm::new(World::start().await?, Dice::new(1));
    let policy = LoadPolicy::default();
    let both = Wish { version: 1, level: 2, nodes: BTreeSet::from([0, 1]), policy, by_tag: true };
    storm.ask(ALL[0], &both).await?;
    storm.becomes_right().await?;
    let name = storm.world.nodes[0].name.clone();
    let before = storm.world.configs().get(&name).await?.uid();

    let World { nodes, cluster, .. } = &mut storm.world;
    nodes[0].join_again(cluster).await?;
    eventually(Duration::from_mins(1), "a NodeModulesConfig of the new Node", || async {
        Ok(storm.world.configs().get_opt(&name).await?.filter(|config| config.uid() != before))
    })
    .await?;
    let right = storm.becomes_right().await;
    if right.is_err() {
        println!("{}", storm.tell().await);
    }
    right?;
    let node = &mut storm.world.nodes[0];
    node.listen().await?;
    let happened = node.boots.last().context("no boot")?;
    ensure!(happened.len() == 1 && !happened[0].left, "the module was touched: {happened:?}");
    Ok(())
}
