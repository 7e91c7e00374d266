//! What left a kernel, and whether an order for it stood in the node's NodeModulesConfig.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::Value;

use crate::images::ALL;

/// Clocks of kernel and host, and the writing of logs, differ by less.
const SLACK: f64 = 2.0;

/// Something that the kernel's log says of one of our modules, in seconds of the host's clock.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Happened {
    pub(crate) at: f64,
    pub(crate) kernel_module: String,
    pub(crate) left: bool,
}

/// The lines `[  12.345678] kmm_ca: hello` and `… bye` of a kernel's log; the kernel started at `boot`.
pub(crate) fn parse_log(log: &str, boot: f64) -> Vec<Happened> {
    let parse = |line: &str| {
        let (stamp, text) = line.trim().strip_prefix('[')?.split_once("] ")?;
        let (kernel_module, what) = text.trim().split_once(": ")?;
        let left = match what.trim() {
            "hello" => false,
            "bye" => true,
            _ => return None,
        };
        let at = boot + stamp.trim().parse::<f64>().ok()?;
        Some(Happened { at, kernel_module: kernel_module.to_owned(), left })
    };
    log.lines().filter_map(parse).collect()
}

/// A time in which an order stood in the NodeModulesConfig of a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stood {
    pub(crate) node: String,
    /// Name of the Module.
    pub(crate) module: String,
    pub(crate) from: f64,
    pub(crate) to: f64,
}

/// Every order that was ever written, from the API server's audit log.
pub(crate) fn read(audit_log: &Path) -> Result<Vec<Stood>> {
    let text = std::fs::read_to_string(audit_log).with_context(|| format!("reading {}", audit_log.display()))?;
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    parse(complete)
}

fn parse(log: &str) -> Result<Vec<Stood>> {
    let mut open: BTreeMap<String, Vec<Stood>> = BTreeMap::new();
    let mut closed = Vec::new();
    for line in log.lines().filter(|line| line.contains("\"nodemodulesconfigs\"")) {
        let event: Value = serde_json::from_str(line).with_context(|| format!("audit log line {line}"))?;
        let changes = matches!(event["verb"].as_str(), Some("patch" | "update" | "create" | "delete"));
        let whole = event["objectRef"]["subresource"].as_str().is_none_or(str::is_empty);
        let done = event["stage"] == "ResponseComplete" && event["responseStatus"]["code"].as_u64() < Some(400);
        let Some(node) = event["objectRef"]["name"].as_str().filter(|_| changes && whole && done) else { continue };
        let stamp: Timestamp = event["requestReceivedTimestamp"].as_str().context("no time")?.parse()?;
        let at = stamp.as_millisecond() as f64 / 1000.0;
        for mut stood in open.remove(node).unwrap_or_default() {
            stood.to = at;
            closed.push(stood);
        }
        let intents = event["requestObject"]["spec"]["unload"].as_array().cloned().unwrap_or_default();
        let stands = |intent: &Value| {
            let module = intent["name"].as_str()?.to_owned();
            Some(Stood { node: node.to_owned(), module, from: at, to: f64::INFINITY })
        };
        open.insert(node.to_owned(), intents.iter().filter_map(stands).collect());
    }
    closed.extend(open.into_values().flatten());
    Ok(closed)
}

/// The departures in one boot of one node's kernel for which no order stood between the load and the end, and that were
/// not of our own hand: times in which the test itself took a kernel module out.
pub(crate) fn without_order(
    node: &str,
    happened: &[Happened],
    orders: &[Stood],
    by_hand: &[(String, f64, f64)],
) -> Vec<String> {
    let mut loaded: BTreeMap<&str, f64> = BTreeMap::new();
    let mut wrong = Vec::new();
    for event in happened {
        if !event.left {
            loaded.insert(&event.kernel_module, event.at);
            continue;
        }
        let from = loaded.remove(event.kernel_module.as_str()).unwrap_or(f64::NEG_INFINITY);
        let of = |name: &str| {
            ALL.iter().any(|brings| {
                brings.module == name
                    && (brings.main == event.kernel_module || brings.needs == Some(event.kernel_module.as_str()))
            })
        };
        let ordered = orders.iter().any(|stood| {
            stood.node == node && of(&stood.module) && stood.from <= event.at + SLACK && stood.to >= from - SLACK
        });
        let ours = by_hand.iter().any(|(name, begun, ended)| {
            *name == event.kernel_module && (begun - SLACK..=ended + SLACK).contains(&event.at)
        });
        if !ordered && !ours {
            wrong.push(format!("{node}: {} left the kernel at {:.3} without an order", event.kernel_module, event.at));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_departure_needs_an_order_in_its_time_or_our_hand() {
        let log = "[    1.000000] kmm_ca: hello\n[   50.500000] kmm_ca: bye\n[   60.0] other: bye now\nnoise\n";
        let happened = parse_log(log, 1000.0);
        assert_eq!(
            happened.iter().map(|event| (event.at, event.left)).collect::<Vec<_>>(),
            [(1001.0, false), (1050.5, true)]
        );
        let order = |module: &str, node: &str, from, to| Stood { node: node.into(), module: module.into(), from, to };
        let by_hand = [("kmm_ca".to_owned(), 1050.0, 1051.0)];
        for (orders, hands, wrong) in [
            (vec![], &[][..], 1),
            (vec![order("alpha", "n", 1040.0, 1060.0)], &[][..], 0),
            (vec![order("beta", "n", 1040.0, 1060.0)], &[][..], 1),
            (vec![order("alpha", "m", 1040.0, 1060.0)], &[][..], 1),
            (vec![order("alpha", "n", 900.0, 990.0)], &[][..], 1),
            (vec![order("alpha", "n", 1055.0, f64::INFINITY)], &[][..], 1),
            (vec![], &by_hand[..], 0),
        ] {
            assert_eq!(without_order("n", &happened, &orders, hands).len(), wrong, "{orders:?}");
        }
    }

    #[test]
    fn orders_stand_from_one_writing_of_the_object_to_the_next() {
        let line = |verb: &str, subresource: &str, code: u32, second: u32, unload: &str| {
            format!(
                r#"{{"stage":"ResponseComplete","verb":"{verb}","objectRef":{{"resource":"nodemodulesconfigs","name":"n","subresource":"{subresource}"}},"responseStatus":{{"code":{code}}},"requestReceivedTimestamp":"1970-01-01T00:00:{second:02}.500000Z","requestObject":{{"spec":{{"unload":[{unload}]}}}}}}"#
            )
        };
        let alpha = r#"{"name":"alpha","namespace":"default","generation":1}"#;
        let log = [
            line("patch", "", 200, 1, alpha),
            line("patch", "", 409, 2, ""),
            line("patch", "status", 200, 3, ""),
            line("patch", "", 200, 4, alpha),
            line("delete", "", 200, 5, ""),
        ]
        .join("\n");
        let times: Vec<(f64, f64)> = parse(&log).unwrap().iter().map(|stood| (stood.from, stood.to)).collect();
        assert_eq!(times, [(1.5, 4.5), (4.5, 5.5)]);
    }
}
