//! Every document stands for itself, and a fault says where it is.

use proptest::prelude::*;

use super::{loaded, source, texts, world};
use crate::world::manifest::parse;
use crate::world::{Loaded, Severity};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIP: 10.0.0.1}\n";

/// The one line that a text's only fault produces.
fn fault(text: &str) -> String {
    let texts = texts(&loaded(text).rejections);
    let [only] = &texts[..] else { panic!("{texts:#?}") };
    only.clone()
}

#[test]
fn a_syntax_error_costs_one_document() {
    let text = format!("{POD}---\nkind: Service\nmetadata: [\n---\n{}", POD.replace("a}", "b}").replace("0.1", "0.2"));
    let Loaded { world, rejections } = loaded(&text);
    assert_eq!(world.pods.len(), 2);
    assert_eq!(rejections.len(), 1);
    assert!((6..=9).contains(&rejections[0].line), "{}", rejections[0]);
    assert!(rejections[0].reason.starts_with("not YAML: "), "{}", rejections[0]);
}

#[test]
fn faults_name_file_line_object_and_field() {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x, namespace: case}\n";
    let cases = [
        (
            format!("# one\n---\n{policy}spec:\n  rules:\n  - form: []\n"),
            "mesh.yaml:8: AuthorizationPolicy case/x: spec.rules[0].form: unknown field `form`",
        ),
        (
            format!("{policy}spec:\n  rules:\n  - to:\n    - operation:\n        ports: [80]\n"),
            "mesh.yaml:8: AuthorizationPolicy case/x: spec.rules[0].to[0].operation.ports[0]: invalid type: integer",
        ),
        (
            format!("{policy}spec:\n  selector:\n  rules: [{{}}]\n"),
            "mesh.yaml:5: AuthorizationPolicy case/x: spec.selector: has no value",
        ),
        (format!("{policy}spec: {{action: DENY}}\n"), "mesh.yaml:4: AuthorizationPolicy case/x: spec.rules: "),
        (format!("{policy}spce: {{}}\n"), "mesh.yaml:4: AuthorizationPolicy case/x: spce: unknown field `spce`"),
        (policy.replace("x,", "X,"), "mesh.yaml:3: AuthorizationPolicy: metadata.name: \"X\" is not a Kubernetes name"),
        (
            policy.replace("istio.io/v1", "istio.io/v2"),
            "mesh.yaml:1: AuthorizationPolicy case/x: apiVersion: version \"v2\" is not known",
        ),
        (
            policy.replace("AuthorizationPolicy", "AuthorisationPolicy"),
            "mesh.yaml:2: AuthorizationPolicy case/x: kind: security.istio.io/v1 has no kind AuthorisationPolicy",
        ),
        (POD.replace("10.0.0.1", "10.0.0.256"), "mesh.yaml:4: Pod default/a: status.podIP: invalid IP address syntax"),
        (
            POD.replace("name: a", "name: a, annotations: {warren.dev/netns: x}"),
            "mesh.yaml:3: Pod default/a: metadata.annotations.warren.dev/netns: not an absolute path",
        ),
        (
            POD.replace("name: a", "name: a, labels: {warren.dev/mode: ambiant}"),
            "mesh.yaml:3: Pod default/a: metadata.labels.warren.dev/mode: \"ambiant\" is none of ambient, observe and none",
        ),
        ("just text\n".to_owned(), "mesh.yaml:1: not a Kubernetes object: it has no kind"),
        (
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {}\n".to_owned(),
            "mesh.yaml:6: Pod: metadata.name: missing",
        ),
        (
            "apiVersion: warren.dev/v1alpha1\nkind: Mesh\nspec:\n  trustDomain: Prod\n".to_owned(),
            "mesh.yaml:4: Mesh mesh: spec.trustDomain: the trust domain has the illegal character 'P'",
        ),
        (
            "apiVersion: warren.dev/v1alpha1\nkind: Mesh\nspec:\n  captureRanges: [10.0.0.0/33]\n".to_owned(),
            "mesh.yaml:4: Mesh mesh: spec.captureRanges[0]: ",
        ),
        (
            "apiVersion: warren.dev/v1alpha1\nkind: Mesh\nspec:\n  localPods:\n  - {name: no, netns: /x}\n".to_owned(),
            "mesh.yaml:5: Mesh mesh: spec.localPods[0].name: the world has no such pod",
        ),
    ];
    for (text, start) in cases {
        let fault = fault(&text);
        assert!(fault.starts_with(start), "\n{fault}\ndoes not start with\n{start}");
    }
}

#[test]
fn an_unknown_kind_is_no_error() {
    let Loaded { rejections, .. } = loaded("apiVersion: x.io/v1\nkind: Thing\nmetadata: {name: t}\n");
    assert_eq!(rejections[0].severity, Severity::Ignored);
    let text = "apiVersion: policy.linkerd.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: t}\n";
    assert_eq!(loaded(text).rejections[0].severity, Severity::Ignored);
}

#[test]
fn the_first_of_two_wins() {
    let again = POD.replace("10.0.0.1", "10.0.0.2");
    let Loaded { world, rejections } = loaded(&format!("{POD}---\n{again}"));
    assert!(world.pod_by_ip("10.0.0.1".parse().unwrap()).is_some());
    assert!(world.pod_by_ip("10.0.0.2".parse().unwrap()).is_none());
    let texts = texts(&rejections);
    assert_eq!(
        texts,
        ["mesh.yaml:8: Pod default/a: metadata.name: mesh.yaml:1 has the same object already; the first one counts"]
    );
}

#[test]
fn one_address_or_namespace_has_one_pod() {
    let annotated = |name: &str, ip: &str, netns: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  annotations:\n    \
             warren.dev/netns: {netns}\n    warren.dev/ips: \"{ip}\"\n"
        )
    };
    let (first, same_ip) = (annotated("a", "10.0.0.1, fd00::1", "/a"), annotated("b", "::ffff:10.0.0.1", "/b"));
    let texts_of = |second: &str| texts(&loaded(&format!("{first}---\n{second}")).rejections);
    assert_eq!(
        texts_of(&same_ip),
        [
            "mesh.yaml:15: Pod default/b: metadata.annotations.warren.dev/ips: 10.0.0.1 belongs to Pod default/a already; the first one counts"
        ]
    );
    let same_netns = texts_of(&annotated("b", "10.0.0.2", "/a"));
    assert!(same_netns[0].contains("the namespace belongs to Pod default/a already"), "{same_netns:?}");
    assert_eq!(texts_of(&annotated("b", "10.0.0.2", "/b")), Vec::<String>::new());
}

#[test]
fn comments_and_empty_documents_are_nothing() {
    assert_eq!(world("---\n# nothing\n---\n---\nnull\n...\n").pods.len(), 0);
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "(?s).{0,200}") {
        let _ = loaded(&text);
    }

    #[test]
    fn arbitrary_lines_never_panic(lines in prop::collection::vec("( {0,4}- |  )?(---|kind|metadata|name|spec|rules|items)?:? ?(List|Pod|Mesh|AuthorizationPolicy|\\[|\\{|&a|\\*a|\"|1)?", 0..12)) {
        let text = lines.join("\n");
        let parsed = parse(&source(&text));
        let count = text.lines().count().max(1);
        for unreadable in parsed.unreadable {
            prop_assert!((1..=count + 1).contains(&unreadable.rejection.line), "{}", unreadable.rejection);
        }
        let _ = loaded(&text);
    }
}
