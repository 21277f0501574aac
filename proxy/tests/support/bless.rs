//! Golden files. `WEFT_BLESS=1 cargo test` writes them anew.

use std::path::Path;

/// Compares with `tests/golden/<name>`.
#[track_caller]
pub fn assert(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("WEFT_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, actual).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "{name} differs; WEFT_BLESS=1 accepts what is there now");
}
