//! The maps' layout: the same in C and in Rust, and the same for as long as its number is.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use sluice_socket_maps::{
    Account, AffinityKey, AffinityValue, Endpoint, Failures, FrontendKey, MOST_SETS, Meta, STRIPES, Totals,
};
use sluice_table::{BUCKETS, Times};

/// Of layout 6. Another one takes another number, `LAYOUT`, as programs of two versions share what is pinned.
const DIGEST: u64 = 8_492_357_279_155_847_692;

/// What maps consist of.
const STRUCTS: [&str; 16] = [
    "account",
    "address",
    "affinity",
    "affinity_key",
    "conn",
    "endpoint",
    "flow",
    "flows",
    "frontend_key",
    "frontend_value",
    "keeping",
    "meta",
    "set",
    "source",
    "sources",
    "totals",
];

/// Sizes, and fields with their offsets, by BTF.
fn structs() -> BTreeMap<String, (u64, Vec<(String, u64)>)> {
    let object = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/sluice.bpf.o");
    let dump = Command::new("bpftool").args(["--json", "btf", "dump", "file", object]).output().unwrap();
    let dump: Value = serde_json::from_slice(&dump.stdout).unwrap();
    let field = |member: &Value| {
        (member["name"].as_str().unwrap().to_owned(), member["bits_offset"].as_u64().unwrap() / 8)
    };
    let structs = dump["types"].as_array().unwrap().iter().filter_map(|kind| {
        let name = kind["name"].as_str().filter(|name| STRUCTS.contains(name))?;
        let fields = kind["members"].as_array()?.iter().map(field).collect();
        Some((name.to_owned(), (kind["size"].as_u64()?, fields)))
    });
    structs.collect()
}

/// A struct of Rust as [`structs`] has it.
macro_rules! rust {
    ($of:ty { $($field:ident $name:literal),* }) => {
        (size_of::<$of>() as u64, vec![$(($name.to_owned(), offset_of!($of, $field) as u64)),*])
    };
}

#[test]
fn c_and_rust_have_the_same() {
    let structs = structs();
    let expected = [
        ("frontend_key", rust!(FrontendKey { addr "ip", port "port", protocol "protocol", pad "pad" })),
        ("affinity_key", rust!(AffinityKey { addr "ip", number "number" })),
        ("affinity", rust!(AffinityValue { id "id", check "check", last_ns "last_ns" })),
        (
            "endpoint",
            rust!(Endpoint {
                addr "ip", port "port", flags "flags", incarnation "incarnation", failures "failures"
            }),
        ),
        (
            "account",
            rust!(Account {
                connections "connections", closed "closed", failed "failed", served "served",
                bytes_to "bytes_to", bytes_from "bytes_from", duration_us "duration_us"
            }),
        ),
        (
            "totals",
            rust!(Totals {
                aborted "aborted", timeouts "timeouts", lives "lives", pad "pad"
            }),
        ),
        (
            "meta",
            rust!(Meta {
                layout "layout", host_cookie "host_cookie", heartbeat_ns "heartbeat_ns",
                relay_mark "relay_mark", sidecar_ports "sidecar_ports", flow_idle_ns "flow_idle_ns",
                flags "flags", pad "pad"
            }),
        ),
    ];
    for (name, expected) in expected {
        assert_eq!(structs[name], expected, "{name}");
    }
}

#[test]
fn another_layout_has_another_number() {
    let structs = structs();
    assert_eq!(structs.len(), STRUCTS.len());
    let digest = format!("{structs:?}")
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    assert_eq!(digest, DIGEST, "change LAYOUT too: {structs:#?}");
}

#[test]
fn lives_are_counted_by_the_bounds_that_the_relay_has() {
    let header = include_str!("../../programs/layout.h");
    let line = header.lines().find_map(|line| line.strip_prefix("#define LIFE_BOUNDS_US(X) ")).unwrap();
    let number = |item: &str| item.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
    let bounds: Vec<u128> = line.split_whitespace().map(number).collect();
    let times = Times::of_lives([0; BUCKETS + 1], Duration::ZERO);
    assert_eq!(bounds, times.buckets().filter_map(|(bound, _)| Some(bound?.as_micros())).collect::<Vec<_>>());
    assert!(header.contains(&format!("#define LIVES {}\n", bounds.len() + 1)));
    assert!(header.contains(&format!("#define OUTCOME_SET {:#x}\n", MOST_SETS - 1)));
    assert!(header.contains(&format!("#define STRIPES {STRIPES}\n")));
    assert!(header.contains(&format!("#define FAILURES_COUNT {}ull\n", Failures::MOST)));
}
