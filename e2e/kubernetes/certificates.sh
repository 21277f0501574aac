#!/usr/bin/env bash
# certificates.sh: makes the cluster's authority, the certificates of its programs and their kubeconfigs in $keys.
set -euo pipefail
. "$(dirname "$0")/common.sh"
mkdir -p "$keys"
cd "$keys"

key() { openssl ecparam -genkey -name prime256v1 -noout -out "$1.key" 2>/dev/null; }

key ca
openssl req -x509 -new -key ca.key -sha256 -days 30 -subj /CN=test-cluster -out ca.crt \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign

# certificate NAME SUBJECT USAGE [SAN]
certificate() {
  key "$1"
  openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
  {
    echo 'basicConstraints=CA:FALSE'
    echo 'keyUsage=digitalSignature,keyEncipherment'
    echo "extendedKeyUsage=$3"
    [ -z "${4:-}" ] || echo "subjectAltName=$4"
  } >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -sha256 -extfile "$1.ext" \
    -out "$1.crt" 2>/dev/null
  rm "$1.csr" "$1.ext"
}

# The API server's address in the service network is the first one.
service=${service_network%.*.*}.0.1
names=DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
certificate apiserver /CN=kube-apiserver serverAuth "$names,IP:127.0.0.1,IP:$node_address,IP:$service"
certificate kubelet-server "/CN=$node_name" serverAuth "DNS:$node_name,IP:$node_address,IP:127.0.0.1"
certificate kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
certificate front-proxy /CN=front-proxy-client clientAuth
openssl genrsa -out accounts.key 2048 2>/dev/null
openssl rsa -in accounts.key -pubout -out accounts.pub 2>/dev/null

# kubeconfig NAME SUBJECT
kubeconfig() {
  certificate "$1" "$2" clientAuth
  cat >"$1.kubeconfig" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://127.0.0.1:$api_port", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}}]
contexts: [{name: test, context: {cluster: test, user: $1}}]
current-context: test
YAML
}
kubeconfig admin /O=system:masters/CN=admin
kubeconfig controller-manager /CN=system:kube-controller-manager
kubeconfig scheduler /CN=system:kube-scheduler
kubeconfig proxy /CN=system:kube-proxy
kubeconfig kubelet "/O=system:nodes/CN=system:node:$node_name"
