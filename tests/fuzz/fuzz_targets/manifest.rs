//! Any text as a manifest: never a panic, every complaint names a line that exists, and reading is deterministic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_core::world::{Loaded, MeshConfig, SourceText, load};

fn read(text: &str, previous: Option<&Loaded>) -> Loaded {
    let mesh = MeshConfig::new("mesh.test".parse().expect("trust domain"));
    let source = SourceText { file: "mesh.yaml".to_owned(), text: text.to_owned() };
    load(&[source], &mesh, previous.map(|loaded| &loaded.world), 1)
}

fuzz_target!(|text: &str| {
    let loaded = read(text, None);
    // Lines as an editor counts them; an end of file is a place as well.
    let lines = text.split(['\n', '\r']).count();
    for rejection in &loaded.rejections {
        assert!((1..=lines + 1).contains(&rejection.line), "line {} of {lines}: {rejection}", rejection.line);
        assert!(rejection.to_string().starts_with("mesh.yaml:"));
        assert!(!rejection.reason.is_empty());
    }
    let captured = loaded.world.captured();
    let prefixes = captured.prefixes();
    for pod in loaded.world.pods.values().filter(|pod| !pod.host_network) {
        assert!(pod.ips.iter().all(|ip| prefixes.iter().any(|prefix| prefix.contains(ip))));
    }
    let again = read(text, None);
    assert_eq!(
        again.rejections.iter().map(ToString::to_string).collect::<Vec<_>>(),
        loaded.rejections.iter().map(ToString::to_string).collect::<Vec<_>>()
    );
    assert_eq!(again.world.status(), loaded.world.status());
    // The same text over itself changes nothing.
    let over = read(text, Some(&loaded));
    assert!(over.world.pods.keys().eq(loaded.world.pods.keys()));
    assert_eq!(over.world.captured(), captured);
});
