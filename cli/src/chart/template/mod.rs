//! The part of Go's template language that the chart uses, with the functions that Helm adds to it. Whatever is outside
//! of that part is an error, never a guess: the chart is tested to give the same objects here and in Helm.

mod eval;
mod functions;
mod parse;

pub use eval::{Files, Renderer};

/// Why a template could not be read or rendered: where, and one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{template}:{line}: {message}")]
pub struct Error {
    /// Name of the template.
    pub template: String,
    /// Line, from 1.
    pub line: usize,
    /// One sentence.
    pub message: String,
    /// Whether the template itself says so, with `required` or `fail`.
    pub said: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    fn render(template: &str, dot: &Value) -> Result<String, String> {
        let files = BTreeMap::from([("rules.yml", "a: [1]\n")]);
        let helpers = "{{ define \"name\" }}<{{ .name }}>{{ end }}";
        let sources = [("_helpers.tpl", helpers), ("t.yaml", template)];
        let renderer = Renderer::new(&sources, &files, &["policy/v1"]).map_err(|e| e.to_string())?;
        renderer.render("t.yaml", dot).map_err(|e| e.to_string())
    }

    #[test]
    fn what_the_chart_uses() {
        let dot = json!({
            "a": { "b": 5, "on": true, "off": false, "empty": "", "none": null, "text": "x\ny" },
            "list": ["p", "q"],
            "name": "n",
        });
        let cases = [
            ("a {{ .a.b }} b", "a 5 b"),
            ("a {{- .a.b -}} b", "a5b"),
            ("a\n  {{- /* a comment */}}\nb", "a\nb"),
            ("{{ .a.none }}{{ .missing }}", ""),
            ("{{ if .a.on }}1{{ else }}2{{ end }}", "1"),
            ("{{ if .a.empty }}1{{ else if .a.on }}2{{ else }}3{{ end }}", "2"),
            ("{{ if and .a.on (not .a.off) (eq .a.b 5) }}yes{{ end }}", "yes"),
            ("{{ if or .a.off .a.empty }}yes{{ else }}no{{ end }}", "no"),
            ("{{ range $i, $e := .list }}{{ $i }}={{ $e }},{{ end }}", "0=p,1=q,"),
            ("{{ range .list }}{{ . }}{{ $.name }}{{ end }}", "pnqn"),
            ("{{ range $k, $v := .a }}{{ $k }} {{ end }}", "b empty none off on text "),
            ("{{ range .missing }}x{{ else }}none{{ end }}", "none"),
            ("{{ with .a.empty }}x{{ else }}y{{ end }}{{ with .a.b }}{{ . }}{{ end }}", "y5"),
            ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}", "2"),
            ("{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ $x }}{{ end }}{{ $x }}", "21"),
            ("{{ include \"name\" . | upper }}{{ template \"name\" (dict \"name\" \"m\") }}", "<N><m>"),
            ("{{ .a.text | indent 2 }}|{{ .a.text | nindent 1 }}", "  x\n  y|\n x\n y"),
            ("{{ .a.text | quote }} {{ quote .a.b }} {{ squote \"z\" }}", "\"x\\ny\" \"5\" 'z'"),
            ("{{ .a.empty | default \"d\" }}{{ .a.b | default 1 }}", "d5"),
            ("{{ printf \"%s-%d-%v-%q\" .name 3 true \"z\" }}", "n-3-true-\"z\""),
            ("{{ b64enc \"hello\" }} {{ sha256sum \"\" | trunc 8 }}", "aGVsbG8= e3b0c442"),
            ("{{ join \",\" .list }} {{ ternary 1 2 .a.on }} {{ len .list }} {{ index .list 1 }}", "p,q 1 2 q"),
            ("{{ toYaml .list }}", "- p\n- q"),
            ("{{ toJson (omit .a \"text\" \"none\" \"empty\" \"off\") }}", "{\"b\":5,\"on\":true}"),
            ("{{ (.Files.Get \"rules.yml\" | fromYaml).a | toJson }}", "[1]"),
            ("{{ .Capabilities.APIVersions.Has \"policy/v1\" }}", "true"),
            ("{{ .Capabilities.APIVersions.Has \"policy/v2\" }}", "false"),
            ("{{ `raw \"text\"` }}{{ \"\\\"\" }}", "raw \"text\"\""),
            ("{{ gt .a.b 4 }} {{ ne .name \"n\" }} {{ empty .a.none }} {{ trim \" x \" }}", "true false true x"),
            ("{{ hasKey .a \"b\" }} {{ int \"7\" }} {{ replace \".\" \"-\" \"a.b\" }}", "true 7 a-b"),
        ];
        for (template, expected) in cases {
            assert_eq!(render(template, &dot).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn what_it_refuses() {
        let dot = json!({ "a": null, "text": "x" });
        let cases = [
            ("{{ .a.b }}", "t.yaml:1: .a is empty, so it has no b"),
            ("\n{{ .text.b }}", "t.yaml:2: .text has no fields, so no b"),
            ("{{ nonsense 1 }}", "t.yaml:1: there is no function \"nonsense\""),
            ("{{ if .a }}", "t.yaml:1: {{ if }} without {{ end }}"),
            ("{{ end }}", "t.yaml:1: {{ end }} without a beginning"),
            ("{{ .a", "t.yaml:1: {{ without }}"),
            ("{{ \"abc }}", "t.yaml:1: a text without its end"),
            ("{{ $x }}", "t.yaml:1: there is no variable $x"),
            ("{{ include \"none\" . }}", "t.yaml:1: there is no template \"none\""),
            ("{{ required \"say a\" .a }}", "t.yaml:1: say a"),
            ("{{ fail \"no\" }}", "t.yaml:1: no"),
            ("{{ .text 1 }}", "t.yaml:1: .text is no function"),
            ("{{ ( }}", "t.yaml:1: ( without )"),
            ("{{ }}", "t.yaml:1: nothing stands between {{ and }}"),
            ("{{ index .text 1 }}", "t.yaml:1: index: neither a list nor a map"),
            ("{{ break }}", "t.yaml:1: there is no function \"break\""),
            ("{{ .Files.Get \"none\" }}", "t.yaml:1: there is no file none"),
        ];
        for (template, expected) in cases {
            assert_eq!(render(template, &dot), Err(expected.to_owned()), "{template}");
        }
        let endless = "{{ define \"e\" }}{{ include \"e\" . }}{{ end }}{{ include \"e\" . }}";
        assert!(render(endless, &dot).unwrap_err().contains("include each other"));
    }

    use proptest::prelude::*;
    proptest! {
        /// Whatever is written in a template, it is rendered or refused.
        #[test]
        fn it_never_panics(text in "(\\{\\{|\\}\\}|-|[a-z. $:=|()\"]|if|end|range|with|define|else|é){0,40}") {
            let _ = render(&text, &json!({ "a": ["b"] }));
        }
    }
}
