//! The worker's own loading against modprobe's, on the same kernel with the same files.
//!
//! For each case modprobe loads from a tree that depmod indexed, and `kmm worker --once` loads from an unpacked image in
//! its store. What counts is what the kernel says afterwards: `/proc/modules`, which has the newest module first, so it
//! tells the order too, and every readable parameter.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kmm::api::{LoadPolicy, ModprobeSpec, ModuleConfig, NodeModuleSpec, NodeModulesConfigSpec};
use kmm::core::load;
use kmm::worker::record::kept_plan::KeptPlan;

use crate::support::bed;
use crate::support::kernel_vm::{KernelVm, KernelVmOptions};
use crate::support::kmods::{Compression, compile, compress};
use crate::support::manager::{executable, stripped};

/// The bed's module `name`: what it needs (a symbol of another one), its soft dependencies and what else stands in it.
fn source(name: &str, needs: &[&str], soft: &str, more: &str) -> (String, String) {
    let ident = name.replace('-', "_");
    let mut text = String::from("#include <linux/module.h>\n#include <linux/crc-itu-t.h>\n");
    let _ = writeln!(text, "int {ident}_f(void);\nint {ident}_f(void) {{ return 1; }}\nEXPORT_SYMBOL_GPL({ident}_f);");
    let mut calls = String::new();
    for need in needs {
        if *need == "host" {
            calls.push_str(" + crc_itu_t(0, (const u8 *)\"x\", 1)");
        } else {
            let _ = writeln!(text, "int {need}_f(void);");
            let _ = write!(calls, " + {need}_f()");
        }
    }
    let _ = writeln!(text, "{more}\nstatic int __init start(void) {{ return (0{calls}) < 0 ? -EINVAL : 0; }}");
    text.push_str(
        "static void __exit end(void) { }\nmodule_init(start);\nmodule_exit(end);\nMODULE_LICENSE(\"GPL\");\n",
    );
    if !soft.is_empty() {
        let _ = writeln!(text, "MODULE_SOFTDEP(\"{soft}\");");
    }
    (format!("{name}.c"), text)
}

const PARAMETERS: &str = r"
static int number = 1; module_param(number, int, 0444);
static char *text = ``none``; module_param(text, charp, 0444);
static bool flag; module_param(flag, bool, 0444);
static int list[4]; static int length; module_param_array(list, int, &length, 0444);
static int with_dash; module_param(with_dash, int, 0444);
";

fn sources() -> Vec<(String, String)> {
    let refused = "static int once = 1; module_param(once, int, 0444);";
    let mut sources = vec![
        source("kmm_a", &[], "", ""),
        source("kmm_b", &["kmm_a"], "", ""),
        source("kmm_c", &["kmm_b"], "", ""),
        source("kmm_d", &["kmm_a"], "", ""),
        source("kmm_e", &["kmm_d", "kmm_b"], "", ""),
        source("kmm-dash-x", &["kmm_a"], "", ""),
        source("kmm_pre", &[], "pre: kmm_a", ""),
        source("kmm_post", &[], "post: kmm_a", ""),
        source("kmm_both", &["kmm_d"], "pre: kmm_pre kmm_gone post: kmm-dash-x", ""),
        source("kmm_round", &[], "pre: kmm_circle", ""),
        source("kmm_circle", &[], "pre: kmm_round", ""),
        source("kmm_built", &[], "pre: crc32 kmm_a", ""),
        source("kmm_host", &["host"], "", ""),
        source("kmm_two", &[], "pre: kmm_a", "MODULE_SOFTDEP(\"post: kmm_d\");"),
        source("kmm_p", &["kmm_a"], "", &PARAMETERS.replace("``", "\"")),
        source("kmm_alias", &[], "", "MODULE_ALIAS(\"kmm-other-name\");"),
        source("kmm_refuses", &[], "", refused),
    ];
    let refuses = &mut sources[16].1;
    *refuses = refuses.replace("return (0) < 0 ? -EINVAL : 0;", "return -ENODEV;");
    let names: Vec<String> = sources.iter().map(|(file, _)| file.replace(".c", ".o")).collect();
    sources.push(("Makefile".into(), format!("obj-m := {}\n", names.join(" "))));
    sources
}

/// One load by both.
#[derive(Default)]
struct Case {
    name: &'static str,
    /// Files of the image; every module of the bed where empty.
    files: &'static [&'static str],
    module: &'static str,
    order: &'static [&'static str],
    parameters: &'static [&'static str],
    /// Commands before each of the two.
    before: &'static str,
    /// The image has neither `modules.dep` nor `modules.softdep`.
    bare: bool,
    /// Commands that change both trees (in `$T`) after depmod.
    change: &'static str,
    /// Where the worker differs on purpose: what it loads, and why.
    differs: Option<(&'static str, &'static str)>,
}

#[allow(clippy::too_many_lines)] // a table
fn cases() -> Vec<Case> {
    let case = |name, module| Case { name, module, ..Case::default() };
    let with = |name, parameters| Case { name, module: "kmm_p", parameters, ..Case::default() };
    let order = |name, order: &'static [&'static str]| Case { name, module: order[0], order, ..Case::default() };
    let packed = |name, files| Case { name, files, module: "kmm_c", ..Case::default() };
    vec![
        case("a module alone", "kmm_a"),
        case("a chain of needs", "kmm_c"),
        case("two needs of one module", "kmm_e"),
        case("a name with dashes", "kmm-dash-x"),
        case("a name with underscores for a file with dashes", "kmm_dash_x"),
        case("a soft dependency before", "kmm_pre"),
        case("a soft dependency after", "kmm_post"),
        case("needs before soft dependencies, absent ones left out", "kmm_both"),
        case("soft dependencies in a circle", "kmm_round"),
        case("a soft dependency that is built in", "kmm_built"),
        case("a need on the host", "kmm_host"),
        Case {
            name: "soft dependencies in modules.softdep alone",
            change: "echo 'softdep kmm_a pre: kmm_pre post: kmm_alias' >$T/modules.softdep",
            ..case("", "kmm_a")
        },
        Case {
            name: "soft dependencies said twice",
            differs: Some((
                "kmm_a kmm_two kmm_d",
                "modprobe takes the first line of a module only, and would lose the second",
            )),
            ..case("", "kmm_two")
        },
        order("an order", &["kmm_alias", "kmm_a", "kmm_pre"]),
        order("an order of dashes and underscores", &["kmm-alias", "kmm-dash-x"]),
        order("an order, and a need that comes before it", &["kmm_b", "kmm_alias"]),
        order("an order against a need", &["kmm_a", "kmm_b"]),
        order("an order partly against a need", &["kmm_alias", "kmm_a", "kmm_c"]),
        Case {
            differs: Some((
                "kmm_alias kmm_a kmm_pre",
                "with an order modprobe would not see the module's own soft dependencies",
            )),
            ..order("an order of a module with soft dependencies", &["kmm_pre", "kmm_alias"])
        },
        packed("packed with xz", &["kmm_a.ko.xz", "kmm_b.ko.xz", "kmm_c.ko.xz"]),
        packed("packed with zstd", &["kmm_a.ko.zst", "kmm_b.ko.zst", "kmm_c.ko.zst"]),
        packed("packed in different ways", &["kmm_a.ko.zst", "kmm_b.ko.xz", "kmm_c.ko"]),
        Case { bare: true, ..packed("without modules.dep", &["kmm_a.ko", "kmm_b.ko", "kmm_c.ko"]) },
        with("a number in hexadecimal digits", &["number=0x1f"]),
        with("a text with spaces", &["text=two words"]),
        with("a text in quotes", &["text=\"two words\""]),
        with("an array", &["list=1,2,3"]),
        with("a flag without value", &["flag"]),
        with("a parameter twice", &["number=2", "number=3"]),
        with("a parameter that the module does not know", &["unknown=1", "number=4"]),
        with("a name of a parameter with a dash", &["with-dash=5"]),
        with("an empty text", &["text="]),
        with("several in one word", &["number=6 flag"]),
        with("a value that the kernel refuses", &["number=many"]),
        case("parameters on the kernel's command line", "kmm_p"),
        Case { before: "insmod /mods/kmm_a.ko", ..case("a need that is there already", "kmm_c") },
        Case {
            before: "insmod /mods/kmm_a.ko; insmod /mods/kmm_pre.ko",
            ..case("the module is there already", "kmm_pre")
        },
        Case {
            before: "echo 'blacklist kmm_a' >/etc/modprobe.d/oracle.conf",
            ..case("a blacklist does not hold for a name", "kmm_b")
        },
        case("a module that refuses to start", "kmm_refuses"),
        case("a module that is not there", "kmm_absent"),
        Case { files: &["kmm_c.ko"], ..case("a need that is nowhere", "kmm_c") },
        Case {
            differs: Some(("", "the name of a kernel module is asked for, and an alias may stand for several")),
            ..case("an alias", "kmm-other-name")
        },
    ]
}

/// The entry of a case, and the words that name its unpacked image in the store.
fn entry(case: &Case, release: &str) -> NodeModuleSpec {
    let strings = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    NodeModuleSpec {
        config: ModuleConfig {
            container_image: format!("registry.example/oracle@sha256:{}", "a".repeat(64)),
            kernel_version: release.into(),
            modprobe: ModprobeSpec {
                module_name: Some(case.module.into()),
                parameters: strings(case.parameters),
                modules_loading_order: (!case.order.is_empty()).then(|| strings(case.order)),
                ..ModprobeSpec::default()
            },
            ..ModuleConfig::default()
        },
        generation: Some(1),
        module_uid: Some("uid-oracle".into()),
        name: "oracle".into(),
        namespace: "default".into(),
        policy: Some(LoadPolicy { load_at_boot: true, ..LoadPolicy::default() }),
        ..NodeModuleSpec::default()
    }
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Commands for all cases; each writes `@ case who`, then what the kernel holds more than before.
fn script(cases: &[Case], release: &str) -> Result<String> {
    let mut script = format!(
        r#"
R={release}
cut -d' ' -f1 /proc/modules >/run/before
news() {{ cut -d' ' -f1 /proc/modules | grep -vxFf /run/before; }}
tell() {{
  echo "@ $1 $2"
  echo "order $(news | tac | tr '\n' ' ')"
  for m in $(news | sort); do
    for p in /sys/module/$m/parameters/*; do [ -r $p ] && echo "$m.${{p##*/}}=$(cat $p)"; done
  done
}}
clean() {{ for m in $(news); do rmmod $m || echo "LEFT $m"; done; rm -f /etc/modprobe.d/oracle.conf; }}
mkdir -p /etc/modprobe.d
"#
    );
    for (number, case) in cases.iter().enumerate() {
        let entry = entry(case, release);
        let identity =
            load::identity(&entry.config).map_err(|trouble| anyhow::anyhow!("{}: {}", case.name, trouble.message))?;
        let plan =
            KeptPlan::new("uid", 1, NodeModulesConfigSpec { modules: vec![entry], ..NodeModulesConfigSpec::default() });
        let plan = serde_json::to_string(&plan)?;
        let files = if case.files.is_empty() {
            "/mods/*.ko".to_owned()
        } else {
            case.files.iter().map(|file| format!("/mods/{file}")).collect::<Vec<_>>().join(" ")
        };
        let mut conf = String::new();
        for (module, next) in case.order.iter().zip(case.order.iter().skip(1)) {
            let _ = writeln!(conf, "softdep {module} pre: {next}");
        }
        let words: Vec<String> = case.parameters.iter().map(|word| quoted(word)).collect();
        let to_image = if case.bare { "rm -f $I/modules.*" } else { "true" };
        let _ = write!(
            script,
            r#"
rm -rf /o /s; T=/o/lib/modules/$R; mkdir -p $T/extra; cp {files} $T/extra/
ln -s /lib/modules/$R/kernel/lib $T/host; touch $T/modules.order; cp /lib/modules/$R/modules.builtin* $T/
/usr/sbin/depmod -b /o $R; {change}
K=/s/trees/{key}/opt; I=$K/lib/modules/$R; mkdir -p $K/lib/modules; cp -a $T $I; rm $I/host; {to_image}
printf %s {plan} >/s/plan.json
{before}
printf %s {conf} >/run/order.conf; [ -s /run/order.conf ] && cp /run/order.conf /etc/modprobe.d/oracle-order.conf
/usr/sbin/modprobe -d /o {module} {words} >/run/said 2>&1; code=$?
tell {number} modprobe; echo "code $code"; cat /run/said
rm -f /etc/modprobe.d/oracle-order.conf; clean
{before}
/kmm worker --once --state-dir /s >/run/said 2>&1; code=$?
tell {number} worker; echo "code $code"; tail -n 3 /run/said
clean
"#,
            change = if case.change.is_empty() { "true" } else { case.change },
            key = identity.tree_key(release),
            plan = quoted(&plan),
            before = if case.before.is_empty() { "true" } else { case.before },
            conf = quoted(&conf),
            module = case.module,
            words = words.join(" "),
        );
    }
    script.push_str("echo @ end end\n");
    Ok(script)
}

/// What one of the two left: the order, the parameters, whether it ended well, and all that was written.
#[derive(Default)]
struct Outcome {
    order: String,
    parameters: Vec<String>,
    well: bool,
    all: String,
}

fn outcomes(text: &str) -> BTreeMap<(String, String), Outcome> {
    let mut found: BTreeMap<(String, String), Outcome> = BTreeMap::new();
    let mut of = (String::new(), String::new());
    for line in text.lines() {
        if let Some((case, who)) = line.strip_prefix("@ ").and_then(|rest| rest.split_once(' ')) {
            of = (case.to_owned(), who.to_owned());
        }
        let outcome = found.entry(of.clone()).or_default();
        outcome.all.push_str(line);
        outcome.all.push('\n');
        if let Some(order) = line.strip_prefix("order ") {
            order.trim().clone_into(&mut outcome.order);
        } else if let Some(code) = line.strip_prefix("code ") {
            outcome.well = code == "0";
        } else if line.starts_with("kmm_") && line.contains('=') && line.contains('.') {
            outcome.parameters.push(line.to_owned());
        }
    }
    found
}

async fn compare(release: &str, cases: Vec<Case>) -> Result<()> {
    let kernel = bed()?.kernel_named(release)?;
    let sources = sources();
    let set: Vec<(&str, String)> = sources.iter().map(|(file, text)| (file.as_str(), text.clone())).collect();
    let folder = compile(kernel, "oracle", &[("1", &set)])?.join("1");
    let mut files = Vec::new();
    for (file, _) in sources.iter().filter(|(file, _)| file != "Makefile") {
        let name = file.replace(".c", ".ko");
        let bytes = std::fs::read(folder.join(&name))?;
        for how in [Compression::Xz, Compression::Zst] {
            files.push((format!("mods/{name}{}", how.suffix()), 0o644, compress(&bytes, how)?));
        }
        files.push((format!("mods/{name}"), 0o644, bytes));
    }
    files.push(("oracle.sh".into(), 0o755, script(&cases, release)?.into_bytes()));
    let vm = KernelVm::start(KernelVmOptions {
        kernel: Some(release.to_owned()),
        files,
        programs: vec![stripped(&executable())?],
        append: "kmm_p.number=77 kmm-p.text=boot".into(),
    })
    .await?;
    let text = vm.exec_for(Duration::from_mins(9), "sh /oracle.sh").await?.text();
    let found = outcomes(&text);
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let of = |who: &str| {
            found.get(&(number.to_string(), who.to_owned())).with_context(|| format!("{}: {who}: {text}", case.name))
        };
        let (theirs, ours) = (of("modprobe")?, of("worker")?);
        let same = match case.differs {
            // A difference that has gone must leave the table.
            Some((order, _)) => ours.order == order && ours.order != theirs.order,
            None => (&ours.order, &ours.parameters, ours.well) == (&theirs.order, &theirs.parameters, theirs.well),
        };
        if !same || theirs.all.contains("LEFT") || ours.all.contains("LEFT") {
            wrong.push(format!("== {}\n{}\n{}", case.name, theirs.all, ours.all));
        }
    }
    ensure!(wrong.is_empty(), "{} of {} cases differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    Ok(())
}

#[tokio::test]
async fn native_loading_and_modprobe_lead_to_the_same_modules_order_and_parameters() -> Result<()> {
    let cases = cases();
    ensure!(cases.len() >= 20, "{} cases", cases.len());
    compare(&bed()?.kernel().release.clone(), cases).await
}

#[tokio::test]
async fn native_loading_and_modprobe_agree_on_a_kernel_that_unpacks_itself() -> Result<()> {
    let cases = cases().into_iter().filter(|case| !case.files.is_empty()).collect();
    compare(&bed()?.plus_kernel()?.release.clone(), cases).await
}
