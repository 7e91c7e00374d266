//! `/proc/modules`.

use std::collections::BTreeMap;

/// State of a module in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InitState {
    /// It runs.
    Live,
    /// Its init function has not returned.
    Coming,
    /// It is being removed.
    Going,
}

/// One line: what the kernel holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// References, those of holders included. `None` in a kernel that cannot unload modules.
    pub refcnt: Option<u32>,
    /// Modules that use this one.
    pub holders: Vec<String>,
    /// The kernel will not let it go: it has no exit function.
    pub permanent: bool,
    /// Where it is on its way.
    pub state: InitState,
}

/// Reads the table: modules by name. Lines that do not fit are skipped.
///
/// Source: `m_show` and `print_unload_info` in `kernel/module/procfs.c` of Linux: name, size, references, users each
/// closed by a comma (`-` if there are none, `[permanent],` and `[unsafe],` among them), state, address, taints.
pub fn parse(text: &str) -> BTreeMap<String, Listed> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<(String, Listed)> {
    let mut fields = line.split_whitespace();
    let name = fields.next()?;
    let _size = fields.next()?;
    let refcnt = fields.next()?.parse().ok();
    let users = fields.next()?;
    let state = match fields.next()? {
        "Live" => InitState::Live,
        "Loading" => InitState::Coming,
        "Unloading" => InitState::Going,
        _ => return None,
    };
    let users: Vec<&str> = users.split(',').filter(|user| !user.is_empty() && *user != "-").collect();
    let permanent = users.contains(&"[permanent]");
    let holders = users.into_iter().filter(|user| !user.starts_with('[')).map(ToOwned::to_owned).collect();
    Some((name.to_owned(), Listed { refcnt, holders, permanent, state }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_line_is_read() {
        let text = "kmm_top 16384 0 - Live 0xffffffffc0a5e000 (OE)\n\
                    kmm_base 16384 1 kmm_top, Live 0x0000000000000000 (OE)\n\
                    virtio 20480 3 virtio_net,virtio_blk, Live 0x0\n\
                    stay 16384 1 [permanent], Live 0x0\n\
                    busy 16384 2 [unsafe],a, Loading 0x0\n\
                    bye 16384 0 - Unloading 0x0\n\
                    nounload 16384 - - Live 0x0\n\
                    short 1\n\nodd 1 0 - Sleeping 0x0\n";
        let entry = |refcnt, holders: &[&str], permanent, state| Listed {
            refcnt,
            holders: holders.iter().map(|h| (*h).to_owned()).collect(),
            permanent,
            state,
        };
        assert_eq!(
            parse(text),
            BTreeMap::from([
                ("kmm_top".into(), entry(Some(0), &[], false, InitState::Live)),
                ("kmm_base".into(), entry(Some(1), &["kmm_top"], false, InitState::Live)),
                ("virtio".into(), entry(Some(3), &["virtio_net", "virtio_blk"], false, InitState::Live)),
                ("stay".into(), entry(Some(1), &[], true, InitState::Live)),
                ("busy".into(), entry(Some(2), &["a"], false, InitState::Coming)),
                ("bye".into(), entry(Some(0), &[], false, InitState::Going)),
                ("nounload".into(), entry(None, &[], false, InitState::Live)),
            ])
        );
    }
}
