//! What the running kernel demands before it takes any module.

/// The kernel's own settings that decide over every module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gates {
    /// It cannot load modules at all, as it was built.
    pub no_modules: bool,
    /// `kernel.modules_disabled`: no module comes or goes until the next boot.
    pub disabled: bool,
    /// Why it takes only modules with a signature, if so.
    pub signed_only: Option<SignedOnly>,
    /// Names on its command line that it never takes.
    pub blacklist: Vec<String>,
}

/// What makes a kernel insist on signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignedOnly {
    /// `module.sig_enforce`, or the kernel was built so.
    Enforced,
    /// Lockdown, in this mode.
    Lockdown(String),
}

impl std::fmt::Display for SignedOnly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Enforced => f.write_str("module.sig_enforce is on"),
            Self::Lockdown(mode) => write!(f, "lockdown is `{mode}`"),
        }
    }
}

/// Reads what demands signatures.
///
/// `sig_enforce` is the parameter of that name; a kernel without it knows no signatures and takes every module, whatever
/// its lockdown. `lockdown` is the file of securityfs, absent where that is not mounted.
/// Source: `module_sig_check` of Linux.
pub fn signed_only(sig_enforce: Option<&str>, lockdown: Option<&str>) -> Option<SignedOnly> {
    if sig_enforce?.trim() == "Y" {
        return Some(SignedOnly::Enforced);
    }
    // `none [integrity] confidentiality`
    let mode = lockdown?.split_whitespace().find_map(|mode| mode.strip_prefix('[')?.strip_suffix(']'))?;
    (mode != "none").then(|| SignedOnly::Lockdown(mode.to_owned()))
}

/// Reads the parameter `module_blacklist`: names as the kernel has them, separated by commas.
pub fn blacklist(text: Option<&str>) -> Vec<String> {
    let names = text.unwrap_or_default().trim().split(',').map(str::trim);
    names.filter(|name| !name.is_empty() && *name != "(null)").map(ToOwned::to_owned).collect()
}

/// `MemAvailable` of `/proc/meminfo`, bytes.
pub fn available_memory(meminfo: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = value.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_demanded_as_the_kernel_demands_them() {
        let lockdown = |mode: &str| Some(SignedOnly::Lockdown(mode.to_owned()));
        for (enforce, mode, expected) in [
            (Some("Y\n"), None, Some(SignedOnly::Enforced)),
            (Some("Y"), Some("[none] integrity confidentiality\n"), Some(SignedOnly::Enforced)),
            (Some("N\n"), None, None),
            (Some("N\n"), Some("[none] integrity confidentiality\n"), None),
            (Some("N\n"), Some("none [integrity] confidentiality\n"), lockdown("integrity")),
            (Some("N\n"), Some("none integrity [confidentiality]\n"), lockdown("confidentiality")),
            (None, Some("none [integrity] confidentiality\n"), None),
            (Some("N"), Some("nonsense"), None),
        ] {
            assert_eq!(signed_only(enforce, mode), expected, "{enforce:?} {mode:?}");
        }
    }

    #[test]
    fn blacklist_and_memory_are_read_and_nonsense_is_none() {
        assert_eq!(blacklist(Some("kmm_a,nouveau\n")), ["kmm_a", "nouveau"]);
        for text in [None, Some(""), Some("(null)\n"), Some(",,\n")] {
            assert_eq!(blacklist(text), [""; 0], "{text:?}");
        }
        let meminfo = "MemTotal:         497804 kB\nMemFree:  1 kB\nMemAvailable:     371864 kB\n";
        assert_eq!(available_memory(meminfo), Some(371_864 * 1024));
        for text in ["", "MemAvailable:\n", "MemAvailable: x kB", "MemAvailable: 18446744073709551615 kB"] {
            assert_eq!(available_memory(text), None, "{text}");
        }
    }
}
