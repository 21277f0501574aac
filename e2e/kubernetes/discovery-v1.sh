#!/usr/bin/env bash
# discovery-v1.sh SOURCES: adds discovery.k8s.io/v1 to Kubernetes 1.20, which has only v1beta1 of it. Both have the same
# fields but one (`topology` became `deprecatedTopology`) and one storage, so v1 is a copy under another name, and the
# real EndpointSlice controller fills it. Every later version has it by itself.
set -euo pipefail
cd "${1:?usage: discovery-v1.sh SOURCES}"
api=staging/src/k8s.io/api/discovery
internal=pkg/apis/discovery
[ ! -d "$api/v1" ] || exit 0

cp -r "$api/v1beta1" "$api/v1"
rm -f "$api"/v1/{BUILD,generated.proto,zz_generated.prerelease-lifecycle.go}
sed -i -e '/prerelease-lifecycle-gen/d' -e 's/v1beta1/v1/g' \
  -e 's/json:"topology,omitempty"/json:"deprecatedTopology,omitempty"/' "$api"/v1/*.go
sed -i 's/fileDescriptor_[0-9a-f]*/&v1/g' "$api/v1/generated.pb.go"

cp -r "$internal/v1beta1" "$internal/v1"
rm -f "$internal"/v1/BUILD "$internal"/v1/*_test.go
sed -i -e 's#\bv1beta1 "k8s.io/api/discovery/v1beta1"#discoveryv1 "k8s.io/api/discovery/v1"#' \
  -e 's/\([^a-z]\)v1beta1\./\1discoveryv1./g' -e 's/v1beta1/v1/g' "$internal"/v1/*.go
sed -i -e 's#^\t"k8s.io/kubernetes/pkg/apis/discovery/v1alpha1"#\t"k8s.io/kubernetes/pkg/apis/discovery/v1"\n&#' \
  -e 's#^\tutilruntime.Must(v1alpha1.AddToScheme(scheme))#\tutilruntime.Must(v1.AddToScheme(scheme))\n&#' \
  -e 's#SetVersionPriority(v1beta1.SchemeGroupVersion, #&v1.SchemeGroupVersion, #' "$internal/install/install.go"

import='\tdiscoveryv1 "k8s.io/api/discovery/v1"'
serve='\tif apiResourceConfigSource.VersionEnabled(discoveryv1.SchemeGroupVersion) {\n\t\tstorage, err := p.v1beta1Storage(apiResourceConfigSource, restOptionsGetter)\n\t\tif err != nil {\n\t\t\treturn genericapiserver.APIGroupInfo{}, false, err\n\t\t}\n\t\tapiGroupInfo.VersionedResourcesStorageMap[discoveryv1.SchemeGroupVersion.Version] = storage\n\t}\n'
sed -i -e "s#^\tdiscoveryv1alpha1 \"k8s.io/api/discovery/v1alpha1\"#$import\n&#" \
  -e "s#^\treturn apiGroupInfo, true, nil#$serve\n&#" pkg/registry/discovery/rest/storage_discovery.go
sed -i -e "s#^\tdiscoveryv1beta1 \"k8s.io/api/discovery/v1beta1\"#$import\n&#" \
  -e 's#^\t\tdiscoveryv1beta1.SchemeGroupVersion,#\t\tdiscoveryv1.SchemeGroupVersion,\n&#' pkg/controlplane/instance.go
sed -i -e 's#^\(\t{Group: "discovery.k8s.io", Version: \)"v1beta1"}:.*#\1"v1"}: {group: 16200, version: 15},\n&#' \
  cmd/kube-apiserver/app/aggregator.go
