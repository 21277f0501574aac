//! Reads the files that `-f` names: files, directories (their `.yaml`, `.yml` and `.json` files, sorted by name), or
//! standard input.

use crate::Error;
use crate::error::Context;
use crate::proto::Document;
use std::io::Read;
use std::path::{Path, PathBuf};
use weft_core::manifest;

/// All documents of all files, parsed and checked.
pub(crate) fn read(files: &[PathBuf]) -> Result<Vec<Document>, Error> {
    let mut documents = Vec::new();
    for path in files {
        let shown = path.display().to_string();
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            parse("standard input", &text, &mut documents)?;
        } else if path.is_dir() {
            for file in files_of(path)? {
                let text = std::fs::read_to_string(&file).context(format!("cannot read {}", file.display()))?;
                parse(&file.display().to_string(), &text, &mut documents)?;
            }
        } else {
            let text = std::fs::read_to_string(path).context(format!("cannot read {shown}"))?;
            parse(&shown, &text, &mut documents)?;
        }
    }
    Ok(documents)
}

fn files_of(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let shown = dir.display();
    let entries = std::fs::read_dir(dir).context(format!("cannot read {shown}"))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| is_manifest(p)).collect();
    files.sort();
    if files.is_empty() {
        return Err(Error::new(format!("{shown} has no .yaml, .yml or .json file")));
    }
    Ok(files)
}

/// Whether a file of a directory is a manifest by its name.
pub(crate) fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
    let known = path.extension().and_then(|e| e.to_str()).is_some_and(|e| ["yaml", "yml", "json"].contains(&e));
    known && !hidden && !path.is_dir()
}

fn parse(file: &str, text: &str, documents: &mut Vec<Document>) -> Result<(), Error> {
    let parsed = manifest::parse(file, text).map_err(|e| Error::new(e.to_string()))?;
    documents.extend(parsed.into_iter().map(|d| Document { file: d.file, index: d.index, value: d.value }));
    Ok(())
}
