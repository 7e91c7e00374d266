//! Which kernel a module was built for, and whether the running one will take it.

/// The kernel's own rule. Source: `same_magic` and `check_modinfo` in `kernel/module/main.c` of Linux.
///
/// With symbol versions in the module, a kernel with modversions leaves the release (the first word) out
/// of the comparison: the versions of the symbols decide. `kernel` is the vermagic of the running kernel, as modules of
/// its own build carry it. Where that is not known, the release is compared if nothing else would be,
/// and the kernel has the last word on the flags.
///
/// # Errors
/// One sentence with both values.
pub fn check(
    module: Option<&str>,
    has_symbol_versions: bool,
    kernel: Option<&str>,
    release: &str,
) -> Result<(), String> {
    // A module without vermagic loads only by force; the kernel says so if it minds.
    let Some(module) = module.map(str::trim) else { return Ok(()) };
    let (module_release, module_flags) = module.split_once(' ').unwrap_or((module, ""));
    match kernel.map(str::trim) {
        Some(kernel) => {
            let (_, kernel_flags) = kernel.split_once(' ').unwrap_or((kernel, ""));
            let by_symbols = has_symbol_versions && kernel_flags.split_whitespace().any(|flag| flag == "modversions");
            let same = if by_symbols { module_flags.trim() == kernel_flags.trim() } else { module == kernel };
            if same { Ok(()) } else { Err(format!("the module is built for `{module}`, the kernel is `{kernel}`")) }
        }
        None if has_symbol_versions || module_release == release => Ok(()),
        None => Err(format!("the module is built for kernel `{module_release}`, the kernel is `{release}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: &str = "6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions ";

    #[test]
    fn the_release_counts_only_without_symbol_versions() {
        let table: [(Option<&str>, bool, Option<&str>, bool); 13] = [
            (Some("6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions"), true, Some(KERNEL), true),
            (Some("6.1.0-54-cloud-amd64 SMP preempt mod_unload modversions"), true, Some(KERNEL), true),
            (Some("6.1.0-54-cloud-amd64 SMP preempt mod_unload modversions"), false, Some(KERNEL), false),
            (Some("6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions"), false, Some(KERNEL), true),
            (Some("6.1.0-56-cloud-amd64 SMP mod_unload modversions"), true, Some(KERNEL), false),
            (Some("6.1.0-54 SMP preempt mod_unload"), true, Some("6.1.0-56 SMP preempt mod_unload"), false),
            (Some("6.1.0-56 SMP preempt mod_unload"), true, Some("6.1.0-56 SMP preempt mod_unload"), true),
            (None, false, Some(KERNEL), true),
            (None, false, None, true),
            (Some("6.1.0-56-cloud-amd64 SMP"), false, None, true),
            (Some("6.1.0-54-cloud-amd64 SMP"), false, None, false),
            (Some("6.1.0-54-cloud-amd64 SMP"), true, None, true),
            (Some(""), false, Some(KERNEL), false),
        ];
        for (module, versions, kernel, expected) in table {
            assert_eq!(
                check(module, versions, kernel, "6.1.0-56-cloud-amd64").is_ok(),
                expected,
                "{module:?} {versions} {kernel:?}"
            );
        }
        assert_eq!(
            check(Some("5.10 SMP"), false, Some("6.1 SMP"), "6.1"),
            Err("the module is built for `5.10 SMP`, the kernel is `6.1 SMP`".to_owned())
        );
    }
}
