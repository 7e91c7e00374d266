//! What would make the kernel refuse a file, told before it is handed over.

use super::load_set::LoadFile;
use crate::api::names::NodeReason;
use crate::core::kmod::gates::Gates;
use crate::worker::facts::Trouble;

/// Memory that must be left beside the modules, bytes: symbol tables, relocations, what init functions ask for.
const RESERVE: u64 = 16 * 1024 * 1024;
const MIB: u64 = 1024 * 1024;

/// Checks files that are about to be loaded against the kernel's own settings.
///
/// No stricter than the kernel. Optional files are left to it: that it refuses them is no failure.
/// Source: `load_module`, `module_sig_check` and `blacklisted` of Linux.
///
/// # Errors
/// The first that would be refused, with what it has and what the kernel wants.
pub(super) fn before_load<'a>(gates: &Gates, files: impl IntoIterator<Item = &'a LoadFile>) -> Result<(), Trouble> {
    let not_permitted = |message: String| Err(Trouble::new(NodeReason::NotPermitted, message));
    for file in files {
        let (name, path) = (&file.name, file.path.display());
        if gates.no_modules {
            return not_permitted(format!(
                "module {name} cannot be loaded: this kernel was built without loadable modules"
            ));
        }
        if gates.disabled {
            return not_permitted(format!(
                "module {name} cannot be loaded: kernel.modules_disabled is 1, so no module comes or goes until a reboot"
            ));
        }
        if file.role == crate::core::kmod::order::Role::Optional {
            continue;
        }
        if gates.blacklist.contains(name) {
            return not_permitted(format!(
                "module {name} cannot be loaded: module_blacklist= on the kernel's command line names it; take it out and reboot"
            ));
        }
        if let (Some(why), None) = (&gates.signed_only, &file.facts.signature) {
            let message = format!(
                "module {name} ({path}) has no signature, and the kernel takes only signed modules ({why}); sign it with a \
                 key that the kernel knows"
            );
            return Err(Trouble::new(NodeReason::SignatureMissing, message));
        }
    }
    Ok(())
}

/// Memory that must be available for these files to be loaded one after the other, bytes.
pub(super) fn memory_for<'a>(files: impl IntoIterator<Item = &'a LoadFile>) -> u64 {
    let (mut stays, mut largest) = (0u64, 0u64);
    for file in files {
        stays = stays.saturating_add(file.facts.memory);
        // The kernel holds the file, and so does the worker where it unpacks it, while it is being loaded.
        let copies = if file.packing == crate::core::kmod::names::Packing::Plain { 1 } else { 2 };
        largest = largest.max(file.facts.size.saturating_mul(copies));
    }
    stays.saturating_add(largest).saturating_add(RESERVE)
}

/// Whether there is enough memory; unknown is enough.
///
/// # Errors
/// With both figures.
pub fn enough_memory(needed: u64, available: Option<u64>) -> Result<(), Trouble> {
    match available {
        Some(available) if available < needed => {
            let message = format!(
                "loading needs {} MiB of memory, the node has {} MiB available; free some, it is tried again",
                needed.div_ceil(MIB),
                available / MIB
            );
            Err(Trouble::new(NodeReason::OutOfMemory, message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::kmod::FileFacts;
    use crate::core::kmod::gates::SignedOnly;
    use crate::core::kmod::names::Packing;
    use crate::core::kmod::order::Role;
    use crate::core::kmod::signature::Signature;
    use crate::worker::testing::file;

    #[test]
    fn what_the_kernel_would_refuse_is_told_with_its_reason() {
        let unsigned = file("gpu", "gpu1", Role::Named, &[]);
        let mut signed = unsigned.clone();
        signed.facts.signature = Some(Signature::default());
        let optional = file("gpu", "gpu1", Role::Optional, &[]);
        let gates = Gates::default();
        let enforced = Gates { signed_only: Some(SignedOnly::Enforced), ..gates.clone() };
        let locked = Gates { signed_only: Some(SignedOnly::Lockdown("integrity".into())), ..gates.clone() };
        let disabled = Gates { disabled: true, ..gates.clone() };
        let blacklist = Gates { blacklist: vec!["gpu".into()], ..gates.clone() };
        let none = Gates { no_modules: true, ..gates.clone() };
        for (gates, file, expected) in [
            (&gates, &unsigned, None),
            (&enforced, &signed, None),
            (&enforced, &optional, None),
            (&enforced, &unsigned, Some((NodeReason::SignatureMissing, "module.sig_enforce is on"))),
            (&locked, &unsigned, Some((NodeReason::SignatureMissing, "lockdown is `integrity`"))),
            (&disabled, &signed, Some((NodeReason::NotPermitted, "kernel.modules_disabled is 1"))),
            (&disabled, &optional, Some((NodeReason::NotPermitted, "kernel.modules_disabled is 1"))),
            (&blacklist, &signed, Some((NodeReason::NotPermitted, "module_blacklist="))),
            (&blacklist, &optional, None),
            (&none, &signed, Some((NodeReason::NotPermitted, "built without loadable modules"))),
        ] {
            match (before_load(gates, [file]), expected) {
                (Ok(()), None) => {}
                (Err(trouble), Some((reason, words))) => {
                    assert_eq!(trouble.reason, reason);
                    assert!(trouble.message.contains(words) && trouble.message.contains("gpu"), "{}", trouble.message);
                }
                (found, expected) => panic!("{found:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn memory_is_that_of_all_modules_and_of_the_largest_file() {
        let facts = |memory, size| FileFacts { memory, size, ..FileFacts::default() };
        let mut plain = file("a", "a1", Role::Named, &[]);
        plain.facts = facts(3 * MIB, 10 * MIB);
        let mut packed = plain.clone();
        packed.packing = Packing::Zstd;
        packed.facts = facts(MIB, 6 * MIB);
        assert_eq!(memory_for([&plain]), 29 * MIB);
        assert_eq!(memory_for([&plain, &packed]), 32 * MIB);
        assert_eq!(enough_memory(32 * MIB, Some(32 * MIB)), Ok(()));
        assert_eq!(enough_memory(32 * MIB, None), Ok(()));
        let trouble = enough_memory(32 * MIB + 1, Some(32 * MIB)).unwrap_err();
        assert_eq!(
            (trouble.reason, trouble.message.as_str()),
            (
                NodeReason::OutOfMemory,
                "loading needs 33 MiB of memory, the node has 32 MiB available; free some, it is tried again"
            )
        );
        plain.facts = facts(u64::MAX, u64::MAX);
        assert_eq!(memory_for([&plain, &packed]), u64::MAX);
    }
}
