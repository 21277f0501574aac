//! ServiceProfiles.

use super::{Checked, Error, Field, duration, regex};
use serde_json::Value;

/// Conditions within conditions, at most.
const DEEPEST: usize = 16;

pub(super) fn check(object: &Value, spec: &Field<'_>) -> Checked {
    let name = Field { value: object.pointer("/metadata/name"), path: "metadata.name".into() };
    let text = name.name()?;
    // `<service>.<namespace>.svc.<domain>`, or the name of something outside.
    if !text.contains('.') {
        return name.fail(format!("{text:?} is not the full name of a service such as web.shop.svc.cluster.local"));
    }
    for route in spec.get("routes").items()? {
        route.get("name").name()?;
        request(route.get("condition").required()?, DEEPEST)?;
        duration(&route.get("timeout"))?;
        for class in route.get("responseClasses").items()? {
            response(class.get("condition").required()?, DEEPEST)?;
        }
    }
    for split in spec.get("dstOverrides").items()? {
        split.get("authority").name()?;
    }
    let budget = spec.get("retryBudget");
    if budget.is_set() {
        let positive = |key: &str| -> Checked {
            let field = budget.get(key);
            match field.required()?.number()? {
                Some(number) if number >= 0.0 => Ok(()),
                _ => field.fail("must not be negative"),
            }
        };
        positive("retryRatio")?;
        positive("minRetriesPerSecond")?;
        duration(budget.get("ttl").required()?)?;
    }
    Ok(())
}

/// Conditions have one of several forms, or combine others.
fn combined<'a>(
    condition: &Field<'a>,
    deepest: usize,
    leaves: &[&str],
    check: fn(&Field<'a>, usize) -> Checked,
) -> Result<(), Error> {
    let Some(deeper) = deepest.checked_sub(1) else { return condition.fail("is too deep") };
    for list in ["all", "any"] {
        for part in condition.get(list).items()? {
            check(&part, deeper)?;
        }
    }
    let not = condition.get("not");
    if not.is_set() {
        check(&not, deeper)?;
    }
    let known = ["all", "any", "not"].iter().chain(leaves).any(|key| condition.get(key).is_set());
    if known { Ok(()) } else { condition.fail(format!("needs one of all, any, not, {}", leaves.join(", "))) }
}

fn request(condition: &Field<'_>, deepest: usize) -> Checked {
    regex(&condition.get("pathRegex"))?;
    condition.get("method").text()?;
    combined(condition, deepest, &["pathRegex", "method"], request)
}

fn response(condition: &Field<'_>, deepest: usize) -> Checked {
    let status = condition.get("status");
    if status.is_set() {
        let bound = |key: &str| -> Result<Option<f64>, Error> {
            let field = status.get(key);
            match field.number()? {
                Some(code) if !(100.0..=599.0).contains(&code) => field.fail("is no status: 100 to 599"),
                code => Ok(code),
            }
        };
        match (bound("min")?, bound("max")?) {
            (None, None) => return status.fail("needs min or max"),
            (Some(min), Some(max)) if min > max => return status.fail("min is more than max"),
            _ => {}
        }
    }
    combined(condition, deepest, &["status"], response)
}
