//! A certificate as text, in the form that OpenSSL and Linkerd print.

use std::fmt::Write as _;
use std::net::IpAddr;
use time::OffsetDateTime;
use time::macros::format_description;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, KeyUsage, ParsedExtension, X509Extension};
use x509_parser::oid_registry::Oid;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Name};

/// The text of a certificate; nothing for that of an authority.
///
/// # Errors
/// When it is not a certificate.
pub fn leaf_text(der: &[u8]) -> Result<Option<String>, String> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(der).map_err(|error| format!("not a certificate: {error}"))?;
    Ok((!certificate.is_ca()).then(|| text(&certificate)))
}

// Writing to a string cannot fail: results of `writeln` are not looked at in this module.

fn text(certificate: &X509Certificate) -> String {
    let mut out = String::from("Certificate:\n    Data:\n");
    let version = certificate.version().0;
    let algorithm = algorithm(&certificate.signature_algorithm.algorithm);
    let _ = writeln!(out, "        Version: {} ({version:#x})", version.saturating_add(1));
    serial(certificate.raw_serial(), &mut out);
    let _ = writeln!(out, "    Signature Algorithm: {algorithm}");
    let _ = writeln!(out, "        Issuer: {}", name(certificate.issuer()));
    let _ = writeln!(out, "        Validity");
    let validity = certificate.validity();
    let _ = writeln!(out, "            Not Before: {}", moment(validity.not_before.to_datetime()));
    let _ = writeln!(out, "            Not After : {}", moment(validity.not_after.to_datetime()));
    let _ = writeln!(out, "        Subject: {}", name(certificate.subject()));
    public_key(certificate.public_key(), &mut out);
    if !certificate.extensions().is_empty() {
        out.push_str("        X509v3 extensions:\n");
        for extension in certificate.extensions() {
            extension_text(extension, &mut out);
        }
    }
    let _ = writeln!(out, "\n    Signature Algorithm: {algorithm}");
    hex_lines(&certificate.signature_value.data, 18, 9, &mut out);
    out.push('\n');
    out
}

/// Short numbers in both notations, long ones as octets.
fn serial(raw: &[u8], out: &mut String) {
    let significant = without_zeros(raw);
    if significant.len() <= 8 {
        let number = significant.iter().fold(0_u64, |sum, octet| sum << 8 | u64::from(*octet));
        let _ = writeln!(out, "        Serial Number: {number} ({number:#x})");
    } else {
        let _ = writeln!(out, "        Serial Number:\n            {}", hex(significant));
    }
}

fn without_zeros(number: &[u8]) -> &[u8] {
    number.iter().position(|octet| *octet != 0).and_then(|at| number.get(at..)).unwrap_or_default()
}

fn public_key(key: &SubjectPublicKeyInfo, out: &mut String) {
    let raw = &key.subject_public_key.data;
    let (kind, body) = match key.parsed() {
        Ok(PublicKey::EC(point)) => ("ECDSA".to_owned(), elliptic(key, point.data())),
        Ok(PublicKey::RSA(rsa)) => {
            let modulus = without_zeros(rsa.modulus);
            let mut body = format!("                Public-Key: ({} bit)\n", modulus.len() * 8);
            hex_field("Modulus", modulus, &mut body);
            match rsa.try_exponent() {
                Ok(exponent) => {
                    let _ = writeln!(body, "                Exponent: {exponent} ({exponent:#x})");
                }
                Err(_) => hex_field("Exponent", rsa.exponent, &mut body),
            }
            ("RSA".to_owned(), body)
        }
        _ => {
            let mut body = String::new();
            hex_field("pub", raw, &mut body);
            (algorithm(&key.algorithm.algorithm), body)
        }
    };
    let _ = writeln!(
        out,
        "        Subject Public Key Info:\n            Public Key Algorithm: {kind}\n{}",
        body.trim_end()
    );
}

fn elliptic(key: &SubjectPublicKeyInfo, point: &[u8]) -> String {
    let parameters = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let curve = parameters.map_or_else(|| "unknown".to_owned(), |oid| curve(&oid));
    let mut body = String::new();
    // An uncompressed point is an octet of 4, then both coordinates.
    match point.split_first() {
        Some((4, coordinates)) => {
            let (x, y) = coordinates.split_at(coordinates.len() / 2);
            let bits = if curve == "P-521" { 521 } else { x.len() * 8 };
            let _ = writeln!(body, "                Public-Key: ({bits} bit)");
            hex_field("X", x, &mut body);
            hex_field("Y", y, &mut body);
        }
        _ => hex_field("pub", point, &mut body),
    }
    let _ = writeln!(body, "                Curve: {curve}");
    body
}

fn curve(oid: &Oid) -> String {
    match oid.to_id_string().as_str() {
        "1.2.840.10045.3.1.7" => "P-256",
        "1.3.132.0.34" => "P-384",
        "1.3.132.0.35" => "P-521",
        other => return other.to_owned(),
    }
    .to_owned()
}

fn algorithm(oid: &Oid) -> String {
    match oid.to_id_string().as_str() {
        "1.2.840.10045.4.3.2" => "ECDSA-SHA256",
        "1.2.840.10045.4.3.3" => "ECDSA-SHA384",
        "1.2.840.10045.4.3.4" => "ECDSA-SHA512",
        "1.2.840.113549.1.1.11" => "SHA256-RSA",
        "1.2.840.113549.1.1.12" => "SHA384-RSA",
        "1.2.840.113549.1.1.13" => "SHA512-RSA",
        "1.3.101.112" => "Ed25519",
        other => return other.to_owned(),
    }
    .to_owned()
}

fn extension_text(extension: &X509Extension, out: &mut String) {
    let (title, lines) = match extension.parsed_extension() {
        ParsedExtension::KeyUsage(usage) => ("X509v3 Key Usage".to_owned(), vec![key_usages(usage)]),
        ParsedExtension::ExtendedKeyUsage(usage) => {
            ("X509v3 Extended Key Usage".to_owned(), vec![extended_key_usages(usage)])
        }
        ParsedExtension::BasicConstraints(constraints) => {
            let mut line = format!("CA:{}", if constraints.ca { "TRUE" } else { "FALSE" });
            if let Some(length) = constraints.path_len_constraint {
                let _ = write!(line, ", pathlen:{length}");
            }
            ("X509v3 Basic Constraints".to_owned(), vec![line])
        }
        ParsedExtension::SubjectKeyIdentifier(id) => ("X509v3 Subject Key Identifier".to_owned(), vec![hex(id.0)]),
        ParsedExtension::AuthorityKeyIdentifier(id) => {
            let line = id.key_identifier.as_ref().map(|id| format!("keyid:{}", hex(id.0)));
            ("X509v3 Authority Key Identifier".to_owned(), line.into_iter().collect())
        }
        ParsedExtension::SubjectAlternativeName(names) => {
            let names: Vec<String> = names.general_names.iter().map(general_name).collect();
            ("X509v3 Subject Alternative Name".to_owned(), vec![names.join(", ")])
        }
        _ => (extension.oid.to_id_string(), vec![hex(extension.value)]),
    };
    let critical = if extension.critical { " critical" } else { "" };
    let _ = writeln!(out, "            {title}:{critical}");
    for line in lines {
        let _ = writeln!(out, "                {line}");
    }
}

fn key_usages(usage: &KeyUsage) -> String {
    let all = [
        (usage.digital_signature(), "Digital Signature"),
        (usage.non_repudiation(), "Non Repudiation"),
        (usage.key_encipherment(), "Key Encipherment"),
        (usage.data_encipherment(), "Data Encipherment"),
        (usage.key_agreement(), "Key Agreement"),
        (usage.key_cert_sign(), "Certificate Sign"),
        (usage.crl_sign(), "CRL Sign"),
        (usage.encipher_only(), "Encipher Only"),
        (usage.decipher_only(), "Decipher Only"),
    ];
    all.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

fn extended_key_usages(usage: &ExtendedKeyUsage) -> String {
    let known = [
        (usage.any, "Any Extended Key Usage"),
        (usage.server_auth, "TLS Web Server Authentication"),
        (usage.client_auth, "TLS Web Client Authentication"),
        (usage.code_signing, "Code Signing"),
        (usage.email_protection, "E-mail Protection"),
        (usage.time_stamping, "Time Stamping"),
        (usage.ocsp_signing, "OCSP Signing"),
    ];
    let known = known.iter().filter(|(set, _)| *set).map(|(_, name)| (*name).to_owned());
    known.chain(usage.other.iter().map(Oid::to_id_string)).collect::<Vec<_>>().join(", ")
}

fn general_name(name: &GeneralName) -> String {
    match name {
        GeneralName::DNSName(name) => format!("DNS:{}", printable(name)),
        GeneralName::URI(uri) => format!("URI:{}", printable(uri)),
        GeneralName::RFC822Name(address) => format!("email:{}", printable(address)),
        GeneralName::IPAddress(octets) => {
            let v4 = <[u8; 4]>::try_from(*octets).map(IpAddr::from);
            match v4.or_else(|_| <[u8; 16]>::try_from(*octets).map(IpAddr::from)) {
                Ok(ip) => format!("IP Address:{ip}"),
                Err(_) => format!("IP Address:{}", hex(octets)),
            }
        }
        other => printable(&other.to_string()),
    }
}

fn name(name: &X509Name) -> String {
    printable(&name.to_string())
}

/// Whoever made a certificate must not get control of a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

fn moment(moment: OffsetDateTime) -> String {
    const FORMAT: &[time::format_description::BorrowedFormatItem<'_>] =
        format_description!("[month repr:short] [day padding:none] [hour]:[minute]:[second] [year] UTC");
    // The format has only parts that every date has.
    moment.to_offset(time::UtcOffset::UTC).format(FORMAT).unwrap_or_default()
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":")
}

fn hex_field(label: &str, octets: &[u8], out: &mut String) {
    let _ = writeln!(out, "                {label}:");
    hex_lines(octets, 15, 20, out);
}

fn hex_lines(octets: &[u8], a_line: usize, indent: usize, out: &mut String) {
    let mut lines = octets.chunks(a_line).peekable();
    while let Some(line) = lines.next() {
        let more = if lines.peek().is_some() { ":" } else { "" };
        let _ = writeln!(out, "{}{}{more}", " ".repeat(indent), hex(line));
    }
}
