use super::*;

fn kernel(text: &str) -> KernelVersion {
    KernelVersion::parse(text).unwrap()
}

fn reference(name: &str) -> LocalObjectReference {
    LocalObjectReference { name: name.to_owned() }
}

fn tls(insecure: bool, skip: bool) -> TLSOptions {
    TLSOptions { insecure, insecure_skip_tls_verify: skip }
}

fn arg(name: &str, value: &str) -> BuildArg {
    BuildArg { name: name.to_owned(), value: value.to_owned() }
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|t| (*t).to_owned()).collect()
}

fn literal(kernel: &str, image: &str) -> KernelMapping {
    KernelMapping { literal: Some(kernel.to_owned()), container_image: image.to_owned(), ..KernelMapping::default() }
}

fn expression(expression: &str, image: &str) -> KernelMapping {
    KernelMapping { regexp: Some(expression.to_owned()), container_image: image.to_owned(), ..KernelMapping::default() }
}

fn container(mappings: Vec<KernelMapping>) -> ModuleLoaderContainerSpec {
    ModuleLoaderContainerSpec { kernel_mappings: mappings, ..ModuleLoaderContainerSpec::default() }
}

fn resolve(container: &ModuleLoaderContainerSpec, release: &str) -> Resolution {
    Mappings::compile(container).unwrap().resolve(&kernel(release), "acx", "drivers")
}

fn resolved(container: &ModuleLoaderContainerSpec, release: &str) -> Resolved {
    match resolve(container, release) {
        Resolution::Matched(resolved) => *resolved,
        other => panic!("{release}: {other:?}"),
    }
}

#[test]
fn the_first_mapping_that_matches_is_taken() {
    let given = container(vec![
        literal("", "none:1"),
        literal("6.1.0-1", "literal:1"),
        expression(r"^6\.1\.", "six-one:1"),
        expression("el9", "el:9"),
        literal("6.12.0+", "plus:1"),
        literal("6.1.7", "never:1"),
    ]);
    let table = [
        ("6.1.0-1", Some((1, "literal:1"))),
        ("6.1.0-1+", Some((1, "literal:1"))),
        ("6.1.7", Some((2, "six-one:1"))),
        ("5.14.0-1.el9.x86_64", Some((3, "el:9"))),
        ("6.12.0+", Some((4, "plus:1"))),
        ("6.12.0", Some((4, "plus:1"))),
        ("6.12.0++", None),
        ("5.10.0", None),
    ];
    for (release, expected) in table {
        let found = match resolve(&given, release) {
            Resolution::Matched(r) => Some((r.mapping_index, r.image)),
            Resolution::NoMapping => None,
            Resolution::Failed(error) => panic!("{error}"),
        };
        assert_eq!(found, expected.map(|(index, image)| (index, image.to_owned())), "{release}");
    }
}

#[test]
fn an_expression_sees_the_kernel_without_its_trailing_plus() {
    let given = container(vec![expression(r"^6\.1\.0$", "a:1")]);
    assert!(resolve(&given, "6.1.0+").matched().is_some());
    assert_eq!(resolve(&given, "6.1.0++"), Resolution::NoMapping);
}

#[test]
fn only_a_trailing_plus_makes_no_difference() {
    let matched =
        |mapping: KernelMapping, release: &str| resolve(&container(vec![mapping]), release).matched().is_some();
    for (mapped, release, expected) in [
        ("6.1.0", "6.1.0+", true),
        ("6.1.0+", "6.1.0", true),
        ("6.1.0+", "6.1.0+", true),
        ("6.1.0+rt", "6.1.0+rt", true),
        ("6.1.0+rt", "6.1.0+rt+", true),
        ("6.1.0+rt+", "6.1.0+rt", true),
        ("6.1.0+rt", "6.1.0", false),
        ("6.1.0", "6.1.0+rt", false),
        ("6.1.0+", "6.1.0+rt", false),
    ] {
        assert_eq!(matched(literal(mapped, "a:1"), release), expected, "literal {mapped} for {release}");
    }
    for (pattern, release, expected) in [
        (r"\+rt$", "6.1.0+rt", true),
        (r"\+rt$", "6.1.0+rt+", true),
        (r"\+$", "6.1.0+", false),
        (r"^6\.1\.0\+?$", "6.1.0+", true),
        (r"^6\.1\.0\+?$", "6.1.0", true),
    ] {
        assert_eq!(matched(expression(pattern, "a:1"), release), expected, "expression {pattern} for {release}");
    }
    let image = resolved(&container(vec![expression(".", "r/i:v1-$KERNEL_FULL_VERSION")]), "6.1.0+rt-2+").image;
    assert_eq!(image, "r/i:v1-6.1.0_rt-2");
}

#[test]
fn every_variable_of_an_image_has_its_value() {
    let release = "6.12.117+deb12-cloud-amd64+";
    let table = [
        ("r/i:$KERNEL_FULL_VERSION", "r/i:6.12.117_deb12-cloud-amd64"),
        ("r/i:${KERNEL_VERSION}", "r/i:6.12.117_deb12-cloud-amd64"),
        ("r/i:${KERNEL_XYZ}", "r/i:6.12.117_deb12"),
        ("r/i:${KERNEL_X}_${KERNEL_Y}_${KERNEL_Z}", "r/i:6_12_117_deb12"),
        ("r/$MOD_NAMESPACE/$MOD_NAME:1", "r/drivers/acx:1"),
        ("r/i$NOTHING:1", "r/i:1"),
    ];
    for (image, expected) in table {
        assert_eq!(resolved(&container(vec![expression(".", image)]), release).image, expected);
    }
}

#[test]
fn a_mapping_without_image_takes_the_containers() {
    let mut given = container(vec![literal("6.1.0", ""), literal("6.1.1", "own:1")]);
    given.container_image = Some("shared:$KERNEL_XYZ".to_owned());
    assert_eq!(resolved(&given, "6.1.0").image, "shared:6.1.0");
    assert_eq!(resolved(&given, "6.1.1").image, "own:1");
}

#[test]
fn what_fails_for_one_kernel_says_where_and_why() {
    let mut signed = expression("^6.4", "a:1");
    signed.sign = Some(Sign { files_to_sign: strings(&["/opt/${KERNEL"]), ..Sign::default() });
    let given = container(vec![
        expression("^6.1", ""),
        expression("^6.2", "a:${KERNEL_XYZ"),
        expression("^6.3", "$NOTHING"),
        signed,
    ]);
    let table = [
        ("6.1.0", "kernelMappings[0] gives no image for kernel 6.1.0: set containerImage there or for the container"),
        (
            "6.2.0",
            r#"kernelMappings[1]: containerImage: template "a:${KERNEL_XYZ": "${" at byte 2 has no "}" before the end of the line; write "$$" for a plain "$""#,
        ),
        ("6.3.0", "kernelMappings[2] gives no image for kernel 6.3.0: set containerImage there or for the container"),
        (
            "6.4.0",
            r#"kernelMappings[3]: sign.filesToSign: template "/opt/${KERNEL": "${" at byte 5 has no "}" before the end of the line; write "$$" for a plain "$""#,
        ),
        ("6.1", r#"kernel version "6.1" has 2 of the three parts X.Y.Z (parts end at '.', ',' or '-')"#),
    ];
    for (release, message) in table {
        match resolve(&given, release) {
            Resolution::Failed(error) => assert_eq!(error.to_string(), message),
            other => panic!("{release}: {other:?}"),
        }
    }
}

#[test]
fn an_expression_that_is_none_is_told_with_its_mapping() {
    let given = container(vec![literal("6.1.0", "a:1"), expression("6.(", "b:1")]);
    assert_eq!(
        Mappings::compile(&given).unwrap_err().to_string(),
        r#"kernelMappings[1].regexp "6.(" is not a regular expression: unclosed group"#
    );
}

#[test]
fn the_mappings_registry_options_replace_the_containers_as_a_whole() {
    let with = |of_mapping: Option<TLSOptions>, of_container: Option<TLSOptions>| {
        let mut mapping = literal("6.1.0", "a:1");
        mapping.registry_tls = of_mapping;
        let mut given = container(vec![mapping]);
        given.registry_tls = of_container;
        resolved(&given, "6.1.0").registry_tls
    };
    assert_eq!(with(None, None), tls(false, false));
    assert_eq!(with(None, Some(tls(true, false))), tls(true, false));
    assert_eq!(with(Some(tls(false, true)), Some(tls(true, false))), tls(false, true));
    assert_eq!(with(Some(tls(false, false)), Some(tls(true, true))), tls(false, false));
}

#[test]
fn in_tree_modules_follow_the_order_of_precedence() {
    // Single of the mapping, list of the mapping, single of the container, list of the container.
    type Row<'a> = (Option<&'a str>, Option<&'a [&'a str]>, Option<&'a str>, Option<&'a [&'a str]>, &'a [&'a str]);
    let table: [Row<'_>; 8] = [
        (None, None, None, None, &[]),
        (None, None, None, Some(&["a", "b"]), &["a", "b"]),
        (None, Some(&["c"]), None, Some(&["a", "b"]), &["c"]),
        (None, Some(&[]), None, Some(&["a", "b"]), &[]),
        (None, None, Some("d"), None, &["d"]),
        (Some("e"), None, Some("d"), Some(&["a"]), &["e"]),
        (None, Some(&["c"]), Some("d"), None, &["d"]),
        (Some(""), Some(&["c"]), Some(""), None, &["c"]),
    ];
    for (single, list, of_container, container_list, expected) in table {
        let mut mapping = literal("6.1.0", "a:1");
        mapping.in_tree_module_to_remove = single.map(str::to_owned);
        mapping.in_tree_modules_to_remove = list.map(strings);
        let mut given = container(vec![mapping]);
        given.in_tree_module_to_remove = of_container.map(str::to_owned);
        given.in_tree_modules_to_remove = container_list.map(strings);
        assert_eq!(resolved(&given, "6.1.0").in_tree_modules_to_remove, expected);
    }
}

fn container_build() -> Build {
    Build {
        build_args: vec![arg("B", "1"), arg("A", "2"), arg("B", "3")],
        dockerfile_config_map: reference("container-file"),
        base_image_registry_tls: Some(tls(true, false)),
        secrets: vec![reference("s1")],
        kaniko_params: None,
        selector: BTreeMap::from([("disk".to_owned(), "fast".to_owned())]),
    }
}

#[test]
fn build_sections_are_merged_field_by_field() {
    let with = |of_mapping: Option<Build>, of_container: Option<Build>| {
        let mut mapping = literal("6.1.0", "a:1");
        mapping.build = of_mapping;
        let mut given = container(vec![mapping]);
        given.build = of_container;
        resolved(&given, "6.1.0").build
    };
    let own = Build {
        build_args: vec![arg("Z", "z"), arg("B", "lost"), arg("C", "c"), arg("B", "won")],
        dockerfile_config_map: reference("own-file"),
        base_image_registry_tls: Some(tls(false, true)),
        secrets: vec![reference("s1"), reference("s2")],
        kaniko_params: Some(crate::api::KanikoParams { tag: Some("v1".to_owned()) }),
        selector: BTreeMap::from([("arch".to_owned(), "arm64".to_owned())]),
    };
    assert_eq!(with(None, None), None);
    assert_eq!(with(None, Some(container_build())), Some(container_build()));
    assert_eq!(with(Some(own.clone()), None), Some(own.clone()));
    assert_eq!(
        with(Some(own.clone()), Some(container_build())),
        Some(Build {
            build_args: vec![arg("B", "won"), arg("A", "2"), arg("B", "won"), arg("C", "c"), arg("Z", "z")],
            secrets: vec![reference("s1"), reference("s2")],
            ..own
        })
    );
    assert_eq!(with(Some(Build::default()), Some(container_build())), Some(container_build()));
}

#[test]
fn sign_sections_are_merged_and_know_the_kernel_but_not_the_module() {
    let with = |of_mapping: Option<Sign>, of_container: Option<Sign>| {
        let mut mapping = literal("6.1.0", "a:1");
        mapping.sign = of_mapping;
        let mut given = container(vec![mapping]);
        given.sign = of_container;
        resolved(&given, "6.1.0").sign
    };
    let shared = Sign {
        unsigned_image: Some("unsigned:$KERNEL_XYZ".to_owned()),
        unsigned_image_registry_tls: Some(tls(true, false)),
        key_secret: reference("key"),
        cert_secret: reference("cert"),
        files_to_sign: strings(&["/opt/$KERNEL_FULL_VERSION/a.ko"]),
    };
    let own = Sign {
        unsigned_image: Some("own:$MOD_NAME$KERNEL_X".to_owned()),
        unsigned_image_registry_tls: Some(tls(false, true)),
        key_secret: reference("own-key"),
        cert_secret: reference(""),
        files_to_sign: strings(&["/opt/$MOD_NAMESPACE/b.ko"]),
    };
    assert_eq!(with(None, None), None);
    assert_eq!(
        with(None, Some(shared.clone())),
        Some(Sign {
            unsigned_image: Some("unsigned:6.1.0".to_owned()),
            files_to_sign: strings(&["/opt/6.1.0/a.ko"]),
            ..shared.clone()
        })
    );
    assert_eq!(
        with(Some(own), Some(shared)),
        Some(Sign {
            unsigned_image: Some("own:6".to_owned()),
            unsigned_image_registry_tls: Some(tls(false, true)),
            key_secret: reference("own-key"),
            cert_secret: reference("cert"),
            files_to_sign: strings(&["/opt/6.1.0/a.ko", "/opt//b.ko"]),
        })
    );
}
