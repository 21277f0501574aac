//! Manifests: what is read, and one clear error for everything that is wrong.

use weft_core::manifest::{self, Document};

fn parse(text: &str) -> Result<Vec<Document>, String> {
    manifest::parse("app.yaml", text).map_err(|e| e.to_string())
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";

fn deployment(container: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  \
         template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      containers:\n      - {container}\n"
    )
}

#[test]
fn documents_lists_and_json() {
    let list = format!("apiVersion: v1\nkind: List\nitems:\n- {}", SERVICE.trim_end().replace('\n', "\n  "));
    let text = format!("# only a comment\n---\n{SERVICE}---\n\n---\n{list}\n");
    let documents = parse(&text).unwrap();
    let places: Vec<_> = documents.iter().map(|d| (d.index, d.object.key("default").to_string())).collect();
    assert_eq!(places, [(1, "service/web in default".into()), (3, "service/web in default".into())]);
    let json = "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\",\n\t\"metadata\": {\"name\": \"a\"}}\n\
                {\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"b\"}}";
    assert_eq!(parse(json).unwrap().len(), 2);
    let flow = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: b}}";
    assert_eq!(parse(flow).unwrap().len(), 2);
    assert_eq!(parse("").unwrap(), []);
    assert_eq!(parse("\u{feff}# nothing").unwrap(), []);
    let full =
        deployment("{name: web, image: web, resources: {limits: {cpu: 1, memory: 20Mi}}, env: [{name: A, value: ''}]}");
    assert_eq!(parse(&full).unwrap().len(), 1);
    let anchors = "apiVersion: v1\nkind: ConfigMap\nmetadata: &m {name: a}\ndata: {a: &x b, c: *x, 80: d}\n";
    assert_eq!(parse(anchors).unwrap()[0].value["data"]["80"], "d");
}

#[test]
fn modes_of_files_are_octal() {
    let volumes =
        "volumes: [{name: a, secret: {secretName: a, defaultMode: 0400, items: [{key: k, path: p, mode: 0o644}]}}]";
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers: [{{name: a, image: a}}]\n  {volumes}\n"
    );
    let documents = parse(&pod).unwrap();
    let secret = &documents[0].value["spec"]["volumes"][0]["secret"];
    assert_eq!((&secret["defaultMode"], &secret["items"][0]["mode"]), (&0o400.into(), &0o644.into()));
    assert!(parse(&pod.replace("0400", "0900")).unwrap_err().contains("defaultMode"));
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {mode: '0400', defaultMode: '0400'}\n";
    assert_eq!(parse(map).unwrap()[0].value["data"]["mode"], "0400");
}

#[test]
fn every_error_names_file_document_and_field() {
    let service = |port: &str| {
        format!(
            "{SERVICE}---\napiVersion: v1\nkind: Service\nmetadata: {{name: b}}\nspec: {{ports: [{{port: {port}}}]}}\n"
        )
    };
    let container = |fields: &str| deployment(&format!("{{name: web, image: web, {fields}}}"));
    for (text, expected) in [
        ("a: [1\n".to_owned(), "app.yaml: document 1: not valid YAML:"),
        (
            format!("{SERVICE}---\na: b: c\n"),
            "app.yaml: document 2: not valid YAML: mapping values are not allowed in this context at line",
        ),
        ("{\"apiVersion\": \"v1\",,}".into(), "app.yaml: document 1: not valid JSON:"),
        ("a: 1\na: 2\n".into(), "app.yaml: document 1: not valid YAML: duplicate entry with key \"a\""),
        ("[1]".into(), "app.yaml: document 1: a manifest must be a mapping"),
        ("kind: Pod".into(), "app.yaml: document 1 (Pod): apiVersion: is required"),
        ("apiVersion: v1".into(), "app.yaml: document 1: kind: is required"),
        ("apiVersion: v1\nkind: Widget".into(), "app.yaml: document 1 (Widget): kind: unknown kind Widget of v1"),
        ("apiVersion: v1\nkind: Deployment".into(), "apiVersion: Deployment is of apps/v1, not of v1"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}".into(), "metadata.name: is required"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: A_b}".into(),
            "(Pod/A_b): metadata.name: \"A_b\" is not a valid name",
        ),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}".into(), "spec: is required"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}".into(),
            "spec.containers: at least one container is required",
        ),
        (
            service("eighty"),
            "app.yaml: document 2 (Service/b): spec.ports[0].port: invalid type: string \"eighty\", expected i32",
        ),
        (service("0"), "app.yaml: document 2 (Service/b): spec.ports[0].port: 0 is no port"),
        (service("80, prot: TCP"), "app.yaml: document 2 (Service/b): spec.ports[0].prot: unknown field"),
        (service("80}, {port: 81"), "spec.ports[0].name: is required when a service has several ports"),
        (service("80, protocol: QUIC"), "spec.ports[0].protocol: \"QUIC\" is none of TCP, UDP, SCTP"),
        (
            container("ports: [{containerPort: 99999}]"),
            "(Deployment/web): spec.template.spec.containers[0].ports[0].containerPort: 99999 is no port",
        ),
        (container("comand: [a]"), "spec.template.spec.containers[0].comand: unknown field"),
        (container("command: a"), "spec.template.spec.containers[0].command: invalid type: string \"a\""),
        (
            container("env: [{name: A, value: 1}]"),
            "spec.template.spec.containers[0].env[0].value: invalid type: integer `1`, expected a string",
        ),
        (
            container("volumeMounts: [{name: a, mountPath: /a}]"),
            "spec.template.spec.containers[0].volumeMounts[0].name: the pod has no volume \"a\"",
        ),
        (
            container("ports: [{containerPort: 1, hostPort: 80}, {containerPort: 2, hostPort: 80}]"),
            "spec.template.spec.containers[0].ports[1].hostPort: there is already a hostPort 80",
        ),
        (
            deployment("{name: web}\n      - {name: web}"),
            "spec.template.spec.containers[1].name: there is already a container \"web\"",
        ),
        (
            deployment("{name: web}").replace("matchLabels: {app: web}", "matchLabels: {app: other}"),
            "spec.template.metadata.labels: the selector does not match",
        ),
        (
            deployment("{name: web}").replace("selector: {matchLabels: {app: web}}", "replicas: 1"),
            "spec.selector: must select by at least one label",
        ),
        (
            deployment("{name: web}").replace("metadata: {name: web}", "metadata: {name: web, labels: {a: 'b c'}}"),
            "metadata.labels.a: \"b c\" is not a valid label value",
        ),
        (
            deployment("{name: web}")
                .replace("metadata: {name: web}", "metadata: {name: web, annotations: {linkerd.io/inject: true}}"),
            "metadata.annotations.linkerd.io/inject: invalid type: boolean `true`, expected a string",
        ),
        (
            "apiVersion: batch/v1\nkind: Job\nmetadata: {name: a}\nspec: {template: {spec: {containers: [{name: a}]}}}"
                .into(),
            "spec.template.spec.restartPolicy: a job needs OnFailure or Never",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}".into(),
            "metadata.namespace: a Namespace has no namespace",
        ),
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {a: '!'}".into(), "(Secret/a): data.a: "),
        ("apiVersion: v1\nkind: List\nitems: 5".into(), "(List): items: a List needs an array of items"),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: !x b}".into(),
            "data.a: YAML tag !x is not supported",
        ),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {[a]: b}".into(), "data: a key must be a string"),
    ] {
        match parse(&text) {
            Ok(_) => panic!("accepted: {text}"),
            Err(error) => assert!(error.contains(expected), "{text}\n  gave {error}\n  expected {expected}"),
        }
    }
}

#[test]
fn deep_nesting_and_aliases_end() {
    let deep = format!("{}1{}", "[".repeat(2_000), "]".repeat(2_000));
    assert!(parse(&deep).is_err());
    assert!(parse(&format!("{}1{}", "{\"a\":".repeat(2_000), "}".repeat(2_000))).is_err());
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", before.trim_end_matches(", ")));
    }
    assert!(parse(&bomb).is_err());
}

#[test]
fn the_manifest_of_the_demo_is_valid() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/emojivoto.yml");
    let documents = parse(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert!(documents.iter().any(|d| d.object.key("default").to_string() == "deployment/web in emojivoto"));
}
