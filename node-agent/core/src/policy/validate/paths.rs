//! Path templates (policy.md §3). L4 enforces no path, but a template with an
//! error is an object that its author has to mend.

/// Checks a value of `paths` or `notPaths`.
pub(super) fn check(path: &str) -> Result<(), String> {
    if !path.contains(['{', '}']) {
        return Ok(());
    }
    let mut rest_taken = false;
    let is_template = path.contains("{*}") || path.contains("{**}");
    for segment in path.trim_matches('/').split('/') {
        match segment {
            "{*}" | "{**}" if rest_taken => {
                return Err(format!("{path:?}: no operator may follow {{**}}"));
            }
            "{*}" => {}
            "{**}" => rest_taken = true,
            _ if segment.contains(['{', '}']) => {
                return Err(format!("{path:?}: braces only as a whole segment, {{*}} or {{**}}"));
            }
            _ if is_template && !is_literal(segment) => {
                return Err(format!("{path:?}: the segment {segment:?} cannot be part of a template"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_literal(segment: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@=".contains(c);
    !segment.is_empty() && segment.chars().all(legal)
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn takes_paths_and_templates() {
        for path in ["/a", "/a*", "*", "/a/{*}/b", "/{**}/b", "/a/{*}/{**}", "{*}"] {
            assert_eq!(check(path), Ok(()), "{path}");
        }
    }

    #[test]
    fn refuses_broken_templates() {
        let broken = ["/a{*}", "/{a}", "/{", "/{**}/{*}", "/{**}/{**}", "/a*/{*}", "/{*}//b", "/{*}/ä"];
        for path in broken {
            assert!(check(path).is_err(), "{path}");
        }
    }
}
