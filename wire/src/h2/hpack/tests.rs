//! The examples of RFC 7541, Appendix C, and properties of both directions together.

use super::*;
use proptest::prelude::*;

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

type List = Vec<(Vec<u8>, Vec<u8>)>;

fn list(fields: &[(&str, &str)]) -> List {
    fields.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<List, DecodeError> {
    let mut out = List::new();
    decoder.decode(block, |f| out.push((f.name.to_vec(), f.value.to_vec())))?;
    Ok(out)
}

/// (block, fields, size of the dynamic table afterwards)
type Step = (&'static str, &'static [(&'static str, &'static str)], usize);

fn check(table: usize, steps: &[Step]) {
    let mut decoder = Decoder::new(table);
    for (block, fields, size) in steps {
        assert_eq!(decode(&mut decoder, &unhex(block)).unwrap(), list(fields));
        assert_eq!(decoder.table_size(), *size);
    }
}

#[test]
fn c2_single_fields() {
    let custom = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
    check(4096, &[(custom, &[("custom-key", "custom-header")], 55)]);
    check(4096, &[("040c 2f73 616d 706c 652f 7061 7468", &[(":path", "/sample/path")], 0)]);
    check(4096, &[("1008 7061 7373 776f 7264 0673 6563 7265 74", &[("password", "secret")], 0)]);
    check(4096, &[("82", &[(":method", "GET")], 0)]);
}

const REQUESTS: [&[(&str, &str)]; 3] = [
    &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")],
    &[
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "www.example.com"),
        ("cache-control", "no-cache"),
    ],
    &[
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ],
];

#[test]
fn c3_requests_without_huffman() {
    check(
        4096,
        &[
            ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", REQUESTS[0], 57),
            ("8286 84be 5808 6e6f 2d63 6163 6865", REQUESTS[1], 110),
            ("8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65", REQUESTS[2], 164),
        ],
    );
}

#[test]
fn c4_requests_with_huffman() {
    check(
        4096,
        &[
            ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", REQUESTS[0], 57),
            ("8286 84be 5886 a8eb 1064 9cbf", REQUESTS[1], 110),
            ("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", REQUESTS[2], 164),
        ],
    );
}

const RESPONSES: [&[(&str, &str)]; 3] = [
    &[
        (":status", "302"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
    ],
    &[
        (":status", "307"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
    ],
    &[
        (":status", "200"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
        ("location", "https://www.example.com"),
        ("content-encoding", "gzip"),
        ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ],
];

#[test]
fn c5_responses_without_huffman_evict() {
    check(
        256,
        &[
            (
                "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 \
                 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                RESPONSES[0],
                222,
            ),
            ("4803 3330 37c1 c0bf", RESPONSES[1], 222),
            (
                "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 \
                 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 \
                 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
                RESPONSES[2],
                215,
            ),
        ],
    );
}

#[test]
fn c6_responses_with_huffman_evict() {
    check(
        256,
        &[
            (
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad \
                 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
                RESPONSES[0],
                222,
            ),
            ("4883 640e ffc1 c0bf", RESPONSES[1], 222),
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 \
                 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
                RESPONSES[2],
                215,
            ),
        ],
    );
}

#[test]
fn broken_blocks_are_refused() {
    for (block, why) in [
        ("80", "index 0"),
        ("be", "index 62 of an empty dynamic table"),
        ("ff80 8080 8001", "integer of five octets more"),
        ("ff80 80", "integer cut off"),
        ("40", "field cut off"),
        ("4003 6162", "name cut off"),
        ("4001 61", "value missing"),
        ("4001 6103 62", "value cut off"),
        ("0001 6181 ff", "eight bits of padding"),
        ("3fe2 1f", "size update above the setting"),
        ("2020 20", "three size updates"),
        ("8220", "size update inside a block"),
        ("7f80 01", "name index outside of the tables"),
    ] {
        assert!(decode(&mut Decoder::new(4096), &unhex(block)).is_err(), "{why}: {block}");
    }
    assert_eq!(decode(&mut Decoder::new(4096), &unhex("203f e11f 82")).unwrap(), list(&[(":method", "GET")]));
}

#[test]
fn a_smaller_setting_must_be_followed() {
    let mut decoder = Decoder::new(4096);
    decoder.set_allowed(100);
    assert!(decode(&mut decoder, &[0x82]).is_err());
    let mut decoder = Decoder::new(4096);
    decoder.set_allowed(100);
    assert!(decode(&mut decoder, &unhex("3f45 82")).is_ok());
}

#[test]
fn validity_is_remembered_with_the_entry() {
    let mut seen = Vec::new();
    let mut decoder = Decoder::new(4096);
    let mut run = |block: &str| decoder.decode(&unhex(block), |f| seen.push((f.name.to_vec(), f.valid))).unwrap();
    run("4001 4101 62"); // A: b, upper case
    run("be"); // the same from the table
    run("7e01 63"); // its name with another value
    run("4001 6101 0a"); // a: LF
    run("be");
    run("7e01 63"); // the name was fine
    let valid: Vec<bool> = seen.iter().map(|(_, v)| *v).collect();
    assert_eq!(valid, [false, false, false, false, false, true]);
}

#[test]
fn repeated_fields_become_one_octet() {
    let mut encoder = Encoder::new(4096);
    let mut decoder = Decoder::new(4096);
    let fields = list(&[(":method", "GET"), (":path", "/a"), ("user-agent", "x/1"), ("x-y", "z"), ("cookie", "c=d")]);
    let mut sizes = Vec::new();
    for _ in 0..4 {
        let mut block = Vec::new();
        encoder.begin(&mut block);
        fields.iter().for_each(|(n, v)| encoder.field(n, v, &mut block));
        assert_eq!(decode(&mut decoder, &block).unwrap(), fields);
        sizes.push(block.len());
    }
    // Three octets indexed after the second time; the cookie is a secret and always literal.
    assert_eq!(sizes[2], 4 + 1 + 1 + 1 + 3);
    assert_eq!(sizes[2], sizes[3]);
}

#[test]
fn secrets_are_never_indexed() {
    let mut encoder = Encoder::new(4096);
    for name in ["authorization", "proxy-authorization", "cookie", "set-cookie"] {
        for _ in 0..4 {
            let mut block = Vec::new();
            encoder.begin(&mut block);
            encoder.field(name.as_bytes(), b"token", &mut block);
            assert_eq!(block[0] & 0xf0, 0x10, "{name}");
            assert!(block.ends_with(b"token"));
        }
    }
}

/// Names that collide with the static table and with each other, values that repeat.
fn field() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let name = prop_oneof![
        prop::sample::select(vec![":path", ":status", "cookie", "accept", "x-a", "x-b", "content-type"])
            .prop_map(|n| n.as_bytes().to_vec()),
        "[a-z][a-z0-9-]{0,20}".prop_map(String::into_bytes),
    ];
    let value = prop_oneof![
        prop::sample::select(vec!["", "200", "/", "1", "2", "gzip, deflate"]).prop_map(|n| n.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..40),
        prop::collection::vec(any::<u8>(), 250..600),
        "[a-z]{250,300}".prop_map(String::into_bytes),
    ];
    (name, value)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decoding_inverts_encoding(
        blocks in prop::collection::vec(prop::collection::vec(field(), 0..12), 1..12),
        sizes in prop::collection::vec(prop::option::of(0usize..6000), 12),
        limit in prop::sample::select(vec![0usize, 40, 200, 4096, 8192]),
    ) {
        let (mut encoder, mut decoder) = (Encoder::new(limit), Decoder::new(4096));
        for (fields, size) in blocks.iter().zip(sizes) {
            if let Some(size) = size {
                decoder.set_allowed(size);
                encoder.set_max(size);
            }
            let mut block = Vec::new();
            encoder.begin(&mut block);
            fields.iter().for_each(|(n, v)| encoder.field(n, v, &mut block));
            prop_assert_eq!(&decode(&mut decoder, &block).unwrap(), fields);
        }
    }

    #[test]
    fn decoding_never_panics(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..6)) {
        let mut decoder = Decoder::new(300);
        for block in &blocks {
            let _ = decode(&mut decoder, block);
            prop_assert!(decoder.table_size() <= 300);
        }
    }

    #[test]
    fn huffman_round_trips(plain in prop::collection::vec(any::<u8>(), 0..300)) {
        let (mut coded, mut back) = (Vec::new(), Vec::new());
        huffman::encode(&plain, &mut coded);
        prop_assert!(huffman::decode(&coded, &mut back));
        prop_assert_eq!(back, plain);
    }

    /// What decodes at all is the canonical encoding of what it decodes to.
    #[test]
    fn huffman_decoding_is_injective(coded in prop::collection::vec(any::<u8>(), 0..40)) {
        let (mut plain, mut again) = (Vec::new(), Vec::new());
        if huffman::decode(&coded, &mut plain) {
            huffman::encode(&plain, &mut again);
            prop_assert_eq!(again, coded);
        }
    }
}
