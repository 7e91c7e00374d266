//! What left a kernel, and whether an order for it stood in the node's NodeModulesConfig.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::Value;

use crate::images::ALL;

/// Clocks of kernel and host, and the writing of logs, differ by less.
const SLACK: f64 = 2.0;
/// Lines of ours in a kernel's log: the time on the host's clock, and between which others the test itself takes out a module.
pub(crate) const CLOCK: &str = "chaos clock";
pub(crate) const HAND: &str = "chaos hand";

/// Something that the kernel's log says of one of our modules, in seconds of the host's clock.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Happened {
    pub(crate) at: f64,
    pub(crate) kernel_module: String,
    pub(crate) left: bool,
    /// It was a file that no Module brings.
    pub(crate) stranger: bool,
    /// It was the test itself, by its own lines before and after: no clock is as right as their order.
    pub(crate) by_hand: bool,
}

/// The lines `[  12.345678] kmm_ca: hello` and `… bye` of a kernel's log, with `stranger` behind them where a file is none of
/// a Module.
///
/// The host's time is told again and again, so that no machine's clock has to be right for long:
/// `chaos clock: 1700000000.5`.
pub(crate) fn parse_log(log: &str) -> Vec<Happened> {
    let (mut offset, mut hand, mut happened) = (0.0, String::new(), Vec::new());
    for line in log.lines() {
        // Before the bracket may stand the line's level.
        let after = line.split_once('[').and_then(|(_, line)| line.trim().split_once("] "));
        let Some((stamp, (name, what))) =
            after.and_then(|(stamp, text)| Some((stamp.trim().parse::<f64>().ok()?, text.trim().split_once(": ")?)))
        else {
            continue;
        };
        let (left, stranger) = match what {
            "hello" => (false, false),
            "bye" => (true, false),
            "hello stranger" => (false, true),
            "bye stranger" => (true, true),
            told => {
                match name {
                    CLOCK => offset = told.parse::<f64>().map_or(offset, |host| host - stamp),
                    HAND => told.clone_into(&mut hand),
                    _ => {}
                }
                continue;
            }
        };
        let by_hand = hand == name;
        happened.push(Happened { at: offset + stamp, kernel_module: name.to_owned(), left, stranger, by_hand });
    }
    happened
}

/// A time in which an order stood in the NodeModulesConfig of a node, or leave to replace other files in a Module.
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
        // A patch that says nothing of orders (it takes labels away) leaves those that stand.
        let changes = match event["verb"].as_str() {
            Some("patch") => event["requestObject"]["spec"].get("unload").is_some(),
            verb => matches!(verb, Some("update" | "create" | "delete")),
        };
        let whole = event["objectRef"]["subresource"].as_str().is_none_or(str::is_empty);
        let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
        // Of a write whose writer was killed meanwhile the server does not know itself whether it was done.
        let (done, perhaps) = (code < 400, code >= 500);
        let counts = changes && whole && event["stage"] == "ResponseComplete" && (done || perhaps);
        let Some(node) = event["objectRef"]["name"].as_str().filter(|_| counts) else { continue };
        let stamp: Timestamp = event["requestReceivedTimestamp"].as_str().context("no time")?.parse()?;
        let at = stamp.as_millisecond() as f64 / 1000.0;
        let standing = open.entry(node.to_owned()).or_default();
        if done {
            closed.extend(standing.drain(..).map(|stood| Stood { to: at, ..stood }));
        }
        let intents = event["requestObject"]["spec"]["unload"].as_array().cloned().unwrap_or_default();
        let stands = |intent: &Value| {
            let module = intent["name"].as_str()?.to_owned();
            Some(Stood { node: node.to_owned(), module, from: at, to: f64::INFINITY })
        };
        standing.extend(intents.iter().filter_map(stands));
    }
    closed.extend(open.into_values().flatten());
    Ok(closed)
}

/// The departures in one boot of one node's kernel for which no order stood between the load and the end, and that were
/// not of our own hand. A file that no Module brought leaves by no order, and only while a Module has `leave` to replace it.
pub(crate) fn without_order(node: &str, happened: &[Happened], orders: &[Stood], leave: &[Stood]) -> Vec<String> {
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
        let ordered = if event.stranger { leave } else { orders }.iter().any(|stood| {
            stood.node == node && of(&stood.module) && stood.from <= event.at + SLACK && stood.to >= from - SLACK
        });
        if !ordered && !event.by_hand {
            let (name, at) = (&event.kernel_module, event.at);
            let known: Vec<&Stood> =
                orders.iter().chain(leave).filter(|stood| stood.node == node && of(&stood.module)).collect();
            wrong.push(format!(
                "{node}: {name} left the kernel at {at:.3} without an order; it came at {from:.3}; before and after stood {known:?}"
            ));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_departure_needs_an_order_in_its_time_or_our_hand() {
        let log = "[ 0.0] chaos clock: 990\n[    1.000000] kmm_ca: hello\n[ 20.0] chaos clock: 1020.0\n\
                   [   50.500000] kmm_ca: bye\n[   60.0] other: bye now\nnoise\n";
        let happened = parse_log(log);
        assert_eq!(
            happened.iter().map(|event| (event.at, event.left)).collect::<Vec<_>>(),
            [(991.0, false), (1050.5, true)]
        );
        let order = |module: &str, node: &str, from, to| Stood { node: node.into(), module: module.into(), from, to };
        for (orders, wrong) in [
            (vec![], 1),
            (vec![order("alpha", "n", 1040.0, 1060.0)], 0),
            (vec![order("beta", "n", 1040.0, 1060.0)], 1),
            (vec![order("alpha", "m", 1040.0, 1060.0)], 1),
            (vec![order("alpha", "n", 900.0, 980.0)], 1),
            (vec![order("alpha", "n", 1055.0, f64::INFINITY)], 1),
        ] {
            assert_eq!(without_order("n", &happened, &orders, &[]).len(), wrong, "{orders:?}");
        }
        for (hand, wrong) in [("kmm_ca", 0), ("kmm_cb", 1), ("none", 1)] {
            let log = log.replace("noise", "").replace("[   50.5", &format!("[   50.1] chaos hand: {hand}\n[   50.5"));
            assert_eq!(without_order("n", &parse_log(&log), &[], &[]).len(), wrong, "{hand}");
        }
        let stranger =
            parse_log("[ 0.0] chaos clock: 1000\n[ 1.0] kmm_ca: hello stranger\n[ 50.5] kmm_ca: bye stranger\n");
        let stood = [order("alpha", "n", 1040.0, 1060.0)];
        assert_eq!(without_order("n", &stranger, &stood, &[]).len(), 1);
        assert_eq!(without_order("n", &stranger, &[], &stood), [""; 0]);
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
            line("patch", "", 200, 3, "").replace(r#""spec":{"unload":[]}"#, r#""metadata":{"labels":{"a":null}}"#),
            line("patch", "", 200, 4, alpha),
            line("patch", "", 504, 5, alpha),
            line("delete", "", 200, 6, ""),
        ]
        .join("\n");
        let times: Vec<(f64, f64)> = parse(&log).unwrap().iter().map(|stood| (stood.from, stood.to)).collect();
        assert_eq!(times, [(1.5, 4.5), (4.5, 6.5), (5.5, 6.5)]);
    }
}
