//! Crafted good and bad safetensors files.

use super::*;
use std::fs;

use half::{bf16, f16};

/// A file of the given header text and data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn fault(bytes: Vec<u8>) -> String {
    Checkpoint::from_bytes("x.safetensors", bytes).expect_err("should be refused").to_string()
}

fn one(name: &str, value: f32) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
    file(&header, &value.to_le_bytes())
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

#[test]
fn reads_all_three_dtypes_as_f32() {
    let mut data = Vec::new();
    data.extend([1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()));
    data.extend([f16::from_f32(0.25), f16::from_f32(-65504.0)].iter().flat_map(|v| v.to_le_bytes()));
    data.extend([bf16::from_f32(3.0), bf16::from_f32(-0.5)].iter().flat_map(|v| v.to_le_bytes()));
    let header = r#"{"__metadata__":{"format":"pt"},
        "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "b":{"dtype":"F16","shape":[1,2],"data_offsets":[8,12]},
        "c":{"dtype":"BF16","shape":[2,1],"data_offsets":[12,16]}}"#;
    let checkpoint = Checkpoint::from_bytes("x", file(header, &data)).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(checkpoint.tensor("a", &[2]).unwrap(), [1.5, -2.0]);
    assert_eq!(checkpoint.tensor("b", &[1, 2]).unwrap(), [0.25, -65504.0]);
    assert_eq!(checkpoint.tensor("c", &[2, 1]).unwrap(), [3.0, -0.5]);
    assert_eq!(checkpoint.shape("c"), Some(&[2, 1][..]));
    let wrong = checkpoint.tensor("a", &[1]).unwrap_err().to_string();
    assert!(wrong.contains("tensor a has shape [2]") && wrong.contains("[1]"), "{wrong}");
    assert!(checkpoint.tensor("d", &[1]).unwrap_err().to_string().contains("tensor d is missing"));
}

#[test]
fn refuses_lengths_that_the_file_does_not_have() {
    assert!(fault(vec![1, 2, 3]).contains("too few"));
    let mut huge = file("{}", &[]);
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(fault(huge).contains("the header should have 18446744073709551615 bytes"));
    let mut whole = one("a", 1.0);
    whole.pop();
    assert!(fault(whole).contains("outside the file's 3 bytes"));
    let mut long = one("a", 1.0);
    long.push(0);
    assert!(fault(long).contains("1 bytes at the end belong to no tensor"));
}

#[test]
fn refuses_headers_that_lie() {
    let t =
        |shape: &str, offsets: &str| format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
    let cases = [
        (t("[1]", "[4,0]"), "offsets 4..0"),
        (t("[1]", "[0,4000000000000]"), "offsets 0..4000000000000"),
        (t("[2]", "[0,4]"), "does not take the 4 bytes"),
        (t("[4294967296,4294967296,4294967296]", "[0,4]"), "does not take"),
        (t("[9223372036854775808,2]", "[0,0]"), "does not take"),
        (t("[1,1,1,1,1,1,1,1,1]", "[0,4]"), "9 dimensions"),
        (t("[-1]", "[0,4]"), "header"),
        (t("[0]", "[0,0]"), "dimension 0 of [0] is 0"),
        (t("[1,0]", "[0,0]"), "dimension 1 of [1, 0] is 0"),
        (t("[1]", "[0,4]").replace('a', &"a".repeat(256)), "has 256 bytes, more than 255"),
        (t("[1]", "[4,8]"), "leaves a gap"),
        (t("[1]", "[0,4]").replace("F32", "Q4"), "Q4"),
        ("[]".into(), "header"),
        ("{\"a\":".into(), "header"),
    ];
    for (header, expected) in cases {
        let message = fault(file(&header, &[0; 8]));
        assert!(message.contains(expected), "{header}: {message}");
        assert!(message.starts_with("x.safetensors: "), "{message}");
    }
}

#[test]
fn refuses_duplicates_and_overlaps() {
    let entry = |name: &str, from: usize| {
        format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{from},{}]}}"#, from + 4)
    };
    let twice = format!("{{{},{}}}", entry("a", 0), entry("a", 4));
    assert!(fault(file(&twice, &[0; 8])).contains("a appears twice"));
    let over = format!("{{{},{}}}", entry("a", 0), entry("b", 2));
    assert!(fault(file(&over, &[0; 6])).contains("tensor b overlaps"));
    let same = format!("{{{},{}}}", entry("a", 0), entry("b", 0));
    assert!(fault(file(&same, &[0; 4])).contains("overlaps"));
}

#[test]
fn refuses_what_is_no_weight() {
    let nan = Checkpoint::from_bytes("x", one("a", f32::NAN)).unwrap().tensor("a", &[1]).unwrap_err();
    assert!(nan.to_string().contains("tensor a holds NaN"), "{nan}");
    let header = r#"{"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#;
    let int = Checkpoint::from_bytes("x", file(header, &[0; 4])).unwrap().tensor("a", &[1]).unwrap_err();
    assert!(int.to_string().contains("tensor a is stored as I32"), "{int}");
}

#[test]
fn opens_shards_and_digests_the_same_weights_alike() {
    let index = br#"{"metadata":{"total_size":8},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    let sharded = folder(&[(INDEX, index), ("1.safetensors", &one("a", 1.0)), ("2.safetensors", &one("b", 2.0))]);
    let sharded = Checkpoint::open(sharded.path()).unwrap();
    assert_eq!(sharded.tensor("a", &[1]).unwrap(), [1.0]);
    assert_eq!(sharded.tensor("b", &[1]).unwrap(), [2.0]);
    assert_eq!(sharded.files().len(), 2);

    let header = r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let data: Vec<u8> = [2.0f32, 1.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let single = folder(&[(SINGLE, &file(header, &data))]);
    let single = Checkpoint::open(single.path()).unwrap();
    assert_eq!(single.digest().unwrap(), sharded.digest().unwrap());
    assert_eq!(single.digest().unwrap().len(), 64);
    let other = Checkpoint::from_bytes("x", one("a", 1.0)).unwrap();
    assert_ne!(single.digest().unwrap(), other.digest().unwrap());
}

#[test]
fn refuses_bad_indexes() {
    let (a, b) = (one("a", 1.0), one("b", 2.0));
    let refused = |index: &str| {
        let folder = folder(&[(INDEX, index.as_bytes()), ("1.safetensors", &a), ("2.safetensors", &b)]);
        Checkpoint::open(folder.path()).expect_err(index).to_string()
    };
    assert!(refused(r#"{"weight_map":{"a":"../1.safetensors"}}"#).contains("no name of a safetensors file beside it"));
    assert!(refused(r#"{"weight_map":{"a":"/etc/x.safetensors"}}"#).contains("no name of"));
    assert!(refused(r#"{"weight_map":{"a":"model.bin"}}"#).contains("no name of"));
    assert!(refused(r#"{"weight_map":{"a":"3.safetensors"}}"#).contains("3.safetensors"));
    assert!(refused(r#"{"weight_map":{"c":"1.safetensors"}}"#).contains("tensor c of"));
    assert!(refused(r#"{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}"#).contains("a appears twice"));
    assert!(refused(r#"{"weight_map":{"a":"2.safetensors","b":"1.safetensors"}}"#).contains("is listed in"));
    assert!(refused(r#"{"weight_map":{}}"#).contains("no tensor"));
    assert!(refused("{}").contains("weight_map"));

    let index = br#"{"weight_map":{"a":"1.safetensors","x":"2.safetensors"}}"#;
    let folder = folder(&[(INDEX, index), ("1.safetensors", &a), ("2.safetensors", &a)]);
    assert!(Checkpoint::open(folder.path()).expect_err("duplicate").to_string().contains("a "));
}

#[test]
fn refuses_folders_without_weights() {
    let empty = folder(&[("pytorch_model.bin", b"x")]);
    let error = Checkpoint::open(empty.path()).unwrap_err();
    assert!(error.to_string().contains("neither model.safetensors nor"), "{error}");
    let odd = folder(&[]);
    fs::create_dir(odd.path().join(SINGLE)).unwrap();
    assert!(Checkpoint::open(odd.path()).unwrap_err().to_string().contains("not a regular file"));
}
