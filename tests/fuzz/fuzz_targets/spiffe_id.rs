//! Any text as a SPIFFE id: what is accepted says exactly what it was made of, and nothing else spells it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_core::identity::SpiffeId;

fuzz_target!(|text: &str| {
    let Ok(id) = text.parse::<SpiffeId>() else { return };
    // One identity has one spelling: otherwise an exact match in a policy could be dodged.
    assert_eq!(id.as_str(), text);
    assert_eq!(id.to_string(), text);
    assert_eq!(format!("spiffe://{}", id.principal()), text);
    let parts = [id.namespace(), id.service_account()];
    assert!(parts.iter().all(|part| !part.is_empty() && !part.contains(['/', '%', '?', '#', ' ', ','])));
    let domain = id.trust_domain().to_string();
    assert!(!domain.is_empty() && domain == domain.to_ascii_lowercase());
    assert_eq!(format!("spiffe://{domain}/ns/{}/sa/{}", parts[0], parts[1]), text);
    let made = SpiffeId::new(&domain.parse().expect("own trust domain"), parts[0], parts[1]);
    assert_eq!(made.as_ref(), Ok(&id));
});
