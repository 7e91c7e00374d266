use std::fs;

use super::*;
use crate::core::kmod::elf::testing::{module, module_with};
use crate::core::kmod::signature::{self, Signature};
use crate::core::kmod::{FileFacts, Identity};

const RELEASE: &str = "6.12.1+";
const MAGIC: &str = "vermagic=6.12.1+ SMP mod_unload";

struct Case {
    _root: tempfile::TempDir,
    tree: PathBuf,
    host: PathBuf,
    firmware: Option<String>,
}

impl Case {
    fn new(image: &[(&str, Vec<u8>)], host: &[(&str, Vec<u8>)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (tree, modules) = (root.path().join("tree"), root.path().join("modules"));
        for (folder, files) in [(tree.join("opt/lib/modules/6.12.1"), image), (modules.join(RELEASE), host)] {
            fs::create_dir_all(&folder).unwrap();
            for (name, content) in files {
                fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
                fs::write(folder.join(name), content).unwrap();
            }
        }
        Self { _root: root, tree, host: modules, firmware: None }
    }

    fn examine(&self, named: &[&str], parameters: &str) -> Result<LoadSet, Trouble> {
        self.examine_on(RELEASE, named, parameters)
    }

    fn examine_on(&self, release: &str, named: &[&str], parameters: &str) -> Result<LoadSet, Trouble> {
        let identity = LoadIdentity {
            digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
            dir_name: "/opt".into(),
            named: named.iter().map(|name| (*name).to_owned()).collect(),
            parameters: parameters.into(),
            firmware_path: self.firmware.clone(),
            by_modprobe: None,
            in_tree: BTreeSet::new(),
        };
        let place = Place {
            tree: &self.tree,
            host_modules: &self.host,
            release,
            machine: "x86_64",
            loaded: &BTreeSet::new(),
            kernel_cmdline: "quiet kmm-a.debug=1 kmm_b.debug=2",
        };
        load_set(&place, &identity)
    }

    fn order(&self, named: &[&str]) -> Result<Vec<String>, NodeReason> {
        let set = self.examine(named, "").map_err(|trouble| trouble.reason)?;
        Ok(set.files.into_iter().map(|file| format!("{:?} {}", file.role, file.name)).collect())
    }
}

fn ko(info: &str, id: u8) -> Vec<u8> {
    module(&format!("{MAGIC}\0{info}\0"), &[id])
}

#[test]
fn dependencies_come_from_the_image_then_from_the_host() {
    let host: [(&str, Vec<u8>); 4] = [
        ("modules.dep", b"kernel/h.ko: kernel/g.ko\nkernel/g.ko:\n".to_vec()),
        ("modules.builtin", b"kernel/built-in-one.ko\n".to_vec()),
        ("kernel/h.ko", ko("name=h", 8)),
        ("kernel/g.ko", ko("name=g", 9)),
    ];
    let with_dep = Case::new(
        &[
            (
                "modules.dep",
                b"extra/kmm-top.ko: kmm-base.ko host/kernel/h.ko host/kernel/g.ko\nkmm-base.ko:\n".to_vec(),
            ),
            ("extra/kmm-top.ko", ko("depends=", 1)),
            ("kmm-base.ko", ko("softdep=pre: g absent", 2)),
        ],
        &host,
    );
    assert_eq!(with_dep.order(&["kmm_top"]).unwrap(), ["Needed g", "Needed h", "Needed kmm_base", "Named kmm_top"]);
    let without =
        Case::new(&[("extra/kmm-top.ko", ko("depends=kmm_base,h,built_in_one", 1)), ("kmm-base.ko", ko("", 2))], &host);
    assert_eq!(without.order(&["kmm_top"]).unwrap(), ["Needed kmm_base", "Needed g", "Needed h", "Named kmm_top"]);
}

/// What it is, the files of the image, and what the module needs.
type Told<'a> = (&'a str, Vec<(&'a str, Vec<u8>)>, &'a [&'a str]);

#[test]
fn what_an_index_does_not_know_a_file_tells_by_itself() {
    let with = |info: &str, id: u8, provides: &[&str], needs: &[&str]| {
        module_with(&format!("{MAGIC}\0{info}\0"), &[id], provides, needs)
    };
    let host: [(&str, Vec<u8>); 5] = [
        ("modules.dep", b"kernel/h.ko: kernel/g.ko\nkernel/g.ko:\nkernel/own.ko:\n".to_vec()),
        ("modules.symbols", b"alias symbol:of_h h\nalias symbol:of_base own\nalias symbol:of_gone gone\n".to_vec()),
        ("kernel/h.ko", ko("", 8)),
        ("kernel/g.ko", ko("", 9)),
        ("kernel/own.ko", ko("", 10)),
    ];
    // By `depends=`, by a symbol of the image's, by a symbol of the host's; what nobody has is left to the kernel.
    let top = |info: &str, symbols: &[&str]| ("top.ko", with(info, 1, &[], symbols));
    let base = ("base.ko", with("", 2, &["of_base"], &[]));
    let cases: [Told<'_>; 7] = [
        ("an index without needs", vec![top("depends=base,h", &[]), base.clone()], &["base", "g", "h"]),
        ("a symbol of the image", vec![top("depends=", &["of_base"]), base.clone()], &["base"]),
        ("a symbol of the host", vec![top("", &["of_h"]), base.clone()], &["g", "h"]),
        ("a symbol that both have", vec![top("", &["printk", "of_base"])], &["own"]),
        ("what is nowhere", vec![top("depends=built_in,gone", &["of_gone", "printk"])], &[]),
        (
            "an index of symbols",
            vec![
                top("", &["of_base"]),
                ("modules.symbols", b"alias symbol:of_base other\nalias symbol:x y\n".to_vec()),
                ("other.ko", with("", 3, &[], &[])),
            ],
            &["other"],
        ),
        (
            "an index of symbols of other files",
            vec![
                top("", &["of_base"]),
                ("modules.symbols", b"alias symbol:of_base gone\n".to_vec()),
                ("late.ko", with("", 3, &["of_base"], &[])),
            ],
            &["late"],
        ),
    ];
    for (what, mut image, expected) in cases {
        image.push(("modules.dep", b"top.ko:\nbase.ko:\nother.ko:\n".to_vec()));
        let expected: Vec<String> =
            expected.iter().map(|name| format!("Needed {name}")).chain(["Named top".to_owned()]).collect();
        assert_eq!(Case::new(&image, &host).order(&["top"]), Ok(expected), "{what}");
    }
    // What the index says is needed, is.
    let indexed = [("modules.dep", b"top.ko: gone.ko\n".to_vec()), top("", &[])];
    assert_eq!(Case::new(&indexed, &host).order(&["top"]), Err(NodeReason::DependencyMissing));
}

#[test]
fn a_folder_of_the_image_may_have_a_plus_more_or_less() {
    let case = Case::new(&[("a.ko", ko("", 1))], &[]);
    let modules = case.tree.join("opt/lib/modules");
    for folder in ["6.12.1+", "6.12.1"] {
        for release in ["6.12.1", "6.12.1+"] {
            let found = case.examine_on(release, &["a"], "");
            // The file itself was built for the one with the plus.
            let expected = if release == RELEASE { Ok(()) } else { Err(NodeReason::VermagicMismatch) };
            assert_eq!(found.map(drop).map_err(|trouble| trouble.reason), expected, "{folder} {release}");
        }
        if modules.join("6.12.1").exists() {
            fs::rename(modules.join("6.12.1"), modules.join("6.12.1+")).unwrap();
        }
    }
    assert!(case.examine_on("6.12.1+rt", &["a"], "").unwrap_err().message.contains("holds no folder"));
}

#[test]
fn firmware_folders_that_link_to_each_other_are_walked_once() {
    use std::os::unix::fs::symlink;
    let mut case = Case::new(&[("a.ko", ko("", 1))], &[]);
    case.firmware = Some("/firmware".into());
    let root = case.tree.join("firmware");
    for folder in ["a", "b", "c"] {
        fs::create_dir_all(root.join(folder)).unwrap();
        fs::write(root.join(folder).join("f"), folder).unwrap();
    }
    for (link, target) in
        [("a/x", "../b"), ("a/y", "../b"), ("b/x", "../a"), ("b/y", "../a"), ("c/up", ".."), ("c/c", ".")]
    {
        symlink(target, root.join(link)).unwrap();
    }
    let firmware = case.examine(&["a"], "").unwrap().firmware.unwrap();
    let names: Vec<&str> = firmware.files.keys().map(String::as_str).collect();
    assert_eq!(names, ["a/f", "a/x/f", "a/y/f", "b/f", "b/x/f", "b/y/f", "c/f"]);
    assert_eq!(firmware.files["a/x/f"], firmware.files["b/f"]);

    // Without any circle each folder doubles the names.
    for depth in 0..40 {
        fs::create_dir_all(root.join(format!("d{depth}"))).unwrap();
        for link in ["x", "y"] {
            symlink(format!("../d{}", depth + 1), root.join(format!("d{depth}")).join(link)).unwrap();
        }
    }
    let trouble = case.examine(&["a"], "").unwrap_err();
    assert_eq!(trouble.reason, NodeReason::ImageTooLarge, "{trouble:?}");
}

#[test]
fn soft_dependencies_come_from_the_module_and_from_the_text_beside_it() {
    let host: [(&str, Vec<u8>); 4] = [
        ("modules.dep", b"kernel/h.ko:\nkernel/g.ko:\n".to_vec()),
        ("modules.softdep", b"softdep h pre: g\n".to_vec()),
        ("kernel/h.ko", ko("name=h", 8)),
        ("kernel/g.ko", ko("name=g", 9)),
    ];
    let case = Case::new(
        &[
            ("modules.softdep", b"softdep kmm-top pre: h post: late\n".to_vec()),
            ("kmm-top.ko", ko("softdep=pre: early", 1)),
            ("early.ko", ko("", 2)),
            ("late.ko", ko("", 3)),
        ],
        &host,
    );
    assert_eq!(
        case.order(&["kmm_top"]).unwrap(),
        ["Optional early", "Optional g", "Optional h", "Named kmm_top", "Optional late"]
    );
}

#[test]
fn a_packed_module_is_found_and_known_by_its_build_id() {
    let case = Case::new(&[("kmm-a.ko.zst", zstd::encode_all(ko("parm=level:x", 7).as_slice(), 1).unwrap())], &[]);
    let set = case.examine(&["kmm_a"], "level=1 colour=2").unwrap();
    assert_eq!(set.unknown_parameters, ["colour"]);
    assert_eq!(
        set.files,
        [LoadFile {
            name: "kmm_a".into(),
            path: case.tree.join("opt/lib/modules/6.12.1/kmm-a.ko.zst"),
            packing: Packing::Zstd,
            role: Role::Named,
            identity: Identity { build_id: Some("07".into()), srcversion: None },
            preset: "debug=1".into(),
            facts: FileFacts { size: ko("parm=level:x", 7).len() as u64, ..FileFacts::default() },
        }]
    );
}

#[test]
fn firmware_is_every_file_below_its_folder_and_nothing_outside_the_image() {
    let mut case = Case::new(&[("kmm-a.ko", ko("", 1))], &[]);
    let put = |name: &str, content: &str| {
        let path = case.tree.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    put("firmware/v/a.bin", "a");
    put("firmware/v/deep/b.bin", "b");
    put("other/c.bin", "c");
    fs::create_dir(case.tree.join("empty")).unwrap();
    for (link, target) in [
        ("firmware/same.bin", "v/a.bin"),
        ("firmware/v/deep/up", "../.."),
        ("firmware/w", "v"),
        ("firmware/out", "/etc"),
        ("firmware/gone", "nowhere"),
        ("firmware/near", "../other"),
    ] {
        std::os::unix::fs::symlink(target, case.tree.join(link)).unwrap();
    }
    case.firmware = Some("/firmware/./".into());
    let firmware = case.examine(&["kmm_a"], "").unwrap().firmware.unwrap();
    assert_eq!(firmware.folder, case.tree.join("firmware"));
    let digests: BTreeSet<&String> = firmware.files.values().collect();
    assert_eq!(
        firmware.files.keys().collect::<Vec<_>>(),
        ["near/c.bin", "same.bin", "v/a.bin", "v/deep/b.bin", "w/a.bin", "w/deep/b.bin"]
    );
    assert_eq!(digests.len(), 3);
    assert_eq!(firmware.files["same.bin"], crate::core::hash::hash_bytes(b"a"));
    for missing in ["/absent", "/empty", "/firmware/v/a.bin"] {
        case.firmware = Some(missing.into());
        let trouble = case.examine(&["kmm_a"], "").unwrap_err();
        assert_eq!(trouble.reason, NodeReason::FirmwareNotFound, "{missing}");
        assert!(trouble.message.contains(missing), "{}", trouble.message);
    }
}

#[test]
fn signatures_of_packed_files_and_of_the_hosts_modules_are_seen() {
    let signed = |name: &str| signature::testing::signed(&ko(&format!("name={name}\0depends=g"), 1), b"message");
    let host: [(&str, Vec<u8>); 2] = [
        ("modules.dep", b"kernel/g.ko.xz:\n".to_vec()),
        ("kernel/g.ko.xz", {
            let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
            std::io::Write::write_all(&mut xz, &signature::testing::signed(&ko("name=g", 2), b"")).unwrap();
            xz.finish().unwrap()
        }),
    ];
    let case = Case::new(&[("m.ko.zst", zstd::encode_all(signed("m").as_slice(), 1).unwrap())], &host);
    let set = case.examine(&["m"], "").unwrap();
    assert_eq!(set.files.len(), 2);
    assert!(set.files.iter().all(|file| file.facts.signature == Some(Signature::default())), "{set:?}");
    assert_eq!(set.files[1].facts.size, signed("m").len() as u64, "the size is that of the unpacked file");
}

#[test]
fn a_hosts_folder_of_another_build_does_not_decide_over_a_module() {
    let other = module("name=g\0vermagic=6.12.0 SMP preempt\0", &[9]);
    for (magic, expected) in [("6.12.1+ SMP", true), ("6.12.2 SMP", false)] {
        let host: [(&str, Vec<u8>); 2] = [("modules.dep", b"kernel/g.ko:\n".to_vec()), ("kernel/g.ko", other.clone())];
        let case = Case::new(&[("m.ko", module(&format!("vermagic={magic}\0"), &[1]))], &host);
        assert_eq!(case.order(&["m"]).is_ok(), expected, "{magic}");
    }
}

#[test]
fn what_cannot_be_loaded_is_told_before_the_kernel_is_asked() {
    let host: [(&str, Vec<u8>); 2] = [("modules.dep", b"kernel/g.ko:\n".to_vec()), ("kernel/g.ko", ko("name=g", 9))];
    let case = Case::new(
        &[
            ("needs.ko", ko("depends=nowhere", 1)),
            ("text.ko", b"no module at all, just text".to_vec()),
            ("other.ko", module("vermagic=5.10.0 SMP mod_unload\0", &[3])),
            ("broken.ko.xz", b"\xfd7zXZ\0rest".to_vec()),
            ("c1.ko", ko("depends=c2", 4)),
            ("c2.ko", ko("depends=c1", 5)),
        ],
        &host,
    );
    for (name, expected) in [
        ("absent", NodeReason::ModuleNotFound),
        ("g", NodeReason::ModuleNotFound),
        ("needs", NodeReason::DependencyMissing),
        ("c1", NodeReason::DependencyMissing),
        ("text", NodeReason::InvalidModule),
        ("broken", NodeReason::InvalidModule),
        ("other", NodeReason::VermagicMismatch),
    ] {
        assert_eq!(case.order(&[name]), Err(expected), "{name}");
    }
    let empty = Case::new(&[], &[]);
    fs::remove_dir_all(empty.tree.join("opt")).unwrap();
    assert_eq!(empty.order(&["a"]), Err(NodeReason::ModuleNotFound));
}

#[test]
fn modules_dep_of_an_image_cannot_lead_out_of_it() {
    let case = Case::new(&[("modules.dep", b"../../../../../etc/evil.ko:\n/etc/evil2.ko:\n".to_vec())], &[]);
    fs::create_dir_all(case.tree.join("../etc")).unwrap();
    fs::write(case.tree.join("../etc/evil.ko"), ko("", 1)).unwrap();
    assert_eq!(case.order(&["evil"]), Err(NodeReason::ModuleNotFound));
}
