#!/usr/bin/env bash
# The first process of the node: private mounts and a private network, then every program. When it ends, so do they, and
# with them everything that was mounted or configured.
set -euo pipefail
. "$(dirname "$0")/common.sh"
set -x

mount --make-rshared /
mount -t proc proc /proc
# A sysfs of this network, with the control groups of the machine.
mkdir -p "$run/cgroups"
mount --rbind /sys/fs/cgroup "$run/cgroups"
mount -t sysfs sysfs /sys
mount --rbind "$run/cgroups" /sys/fs/cgroup
hostname "$node_name"
mkdir -p "$run/var/upper" "$run/var/work"
mount -t overlay overlay -o "lowerdir=/var,upperdir=$run/var/upper,workdir=$run/var/work" /var
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/netns

# The kubelet wants these, which belong to the whole machine: it gets files in their place.
mkdir -p "$run/sysctl"
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=$run/sysctl/$(echo "${setting%=*}" | tr / _)
  echo "${setting#*=}" >"$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done

ip link set lo up
ip link add node0 type veth peer name node0p
ip addr add "$node_address/24" dev node0
ip link set node0 up
ip link set node0p up
ip route add default dev node0
echo 1 >/proc/sys/net/ipv4/ip_forward

# Version 1 of control groups, one hierarchy a controller, or version 2.
for controller in /sys/fs/cgroup/*/; do
  [ -e "$controller/cgroup.procs" ] && mkdir -p "$controller/$cgroup"
done
if [ -d "/sys/fs/cgroup/cpuset/$cgroup" ]; then
  for what in mems cpus; do
    cat "/sys/fs/cgroup/cpuset/cpuset.$what" >"/sys/fs/cgroup/cpuset/$cgroup/cpuset.$what"
  done
fi

# Plugins are installed in it by tests, so it is not Debian's own.
mkdir -p "$run/cni" "$run/cni-bin" "$run/containerd"
ln -s "$debian"/usr/lib/cni/* "$run/cni-bin/"
cat >"$run/cni/10-bridge.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": 1500,
   "ipam": {"type": "host-local", "dataDir": "$run/cni-state", "ranges": [[{"subnet": "$pod_network"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
# Without the right to lower its score for being killed (as in many containers), runc fails unless that is restricted.
cat >"$run/containerd.toml" <<TOML
version = 2
root = "$run/containerd/root"
state = "$run/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt"]
[grpc]
  address = "$run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$run/cni-bin"
    conf_dir = "$run/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "$debian/usr/sbin/runc"
        SystemdCgroup = false
TOML
cat >"$run/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $keys/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $keys/kubelet-server.crt
tlsPrivateKeyFile: $keys/kubelet-server.key
cgroupDriver: cgroupfs
cgroupRoot: /$cgroup
clusterDomain: cluster.local
clusterDNS: [$dns_address]
resolvConf: ""
failSwapOn: false
maxPods: 110
imageMinimumGCAge: 1000h
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi}
enforceNodeAllocatable: [pods]
nodeStatusUpdateFrequency: 5s
syncFrequency: 10s
registryPullQPS: 0
serializeImagePulls: false
volumePluginDir: $run/volume-plugins
YAML
cat >"$run/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $keys/proxy.kubeconfig}
mode: iptables
clusterCIDR: $pod_network
hostnameOverride: $node_name
bindAddress: $node_address
metricsBindAddress: 127.0.0.1:10249
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
iptables: {minSyncPeriod: 0s, syncPeriod: 30s}
YAML

gates=EndpointSliceNodeName=true,EndpointSliceTerminatingCondition=true
etcd=http://127.0.0.1:12379
peer=http://127.0.0.1:12380
start etcd etcd --data-dir "$run/etcd" --listen-client-urls "$etcd" --advertise-client-urls "$etcd" \
  --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer" --unsafe-no-fsync
# A script of its own, so that a test can stop the API server and start it again.
cat >"$run/apiserver.sh" <<SH
#!/usr/bin/env bash
exec kube-apiserver --etcd-servers=$etcd --secure-port=$api_port --bind-address=0.0.0.0 \\
  --advertise-address=$node_address --client-ca-file=$keys/ca.crt \\
  --tls-cert-file=$keys/apiserver.crt --tls-private-key-file=$keys/apiserver.key \\
  --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=$keys/accounts.pub \\
  --service-account-signing-key-file=$keys/accounts.key --service-cluster-ip-range=$service_network \\
  --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \\
  --kubelet-client-certificate=$keys/kubelet-client.crt --kubelet-client-key=$keys/kubelet-client.key \\
  --kubelet-certificate-authority=$keys/ca.crt --kubelet-preferred-address-types=InternalIP \\
  --requestheader-client-ca-file=$keys/ca.crt --requestheader-allowed-names=front-proxy-client \\
  --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group \\
  --requestheader-username-headers=X-Remote-User --proxy-client-cert-file=$keys/front-proxy.crt \\
  --proxy-client-key-file=$keys/front-proxy.key --enable-aggregator-routing=true --allow-privileged=true \\
  --feature-gates=$gates --event-ttl=1h --v=1
SH
chmod +x "$run/apiserver.sh"
start apiserver "$run/apiserver.sh"
start containerd containerd -c "$run/containerd.toml"
start api-socket socat "UNIX-LISTEN:$run/api.sock,fork" "TCP-CONNECT:127.0.0.1:$api_port"

export KUBECONFIG=$keys/admin.kubeconfig
wait_for 60 containerd ctr -a "$run/containerd.sock" version
for image in "$run"/images/*.tar; do ctr -a "$run/containerd.sock" -n k8s.io images import "$image"; done
wait_for 120 "the API server" kubectl get --raw /readyz
config() { echo "--kubeconfig=$keys/$1.kubeconfig --authentication-kubeconfig=$keys/$1.kubeconfig --authorization-kubeconfig=$keys/$1.kubeconfig"; }
# The grace period is longer than a test keeps the API server away: when it is back, this, which heard of no node for so
# long, would take the only one for dead and every pod out of its service, before the kubelet had a chance to say so.
start controller-manager kube-controller-manager $(config controller-manager) --use-service-account-credentials \
  --service-account-private-key-file="$keys/accounts.key" --root-ca-file="$keys/ca.crt" \
  --cluster-signing-cert-file="$keys/ca.crt" --cluster-signing-key-file="$keys/ca.key" --feature-gates="$gates" \
  --controllers='*,bootstrapsigner,tokencleaner' --node-monitor-grace-period=5m --leader-elect=false --bind-address=127.0.0.1 --port=0
start scheduler kube-scheduler $(config scheduler) --leader-elect=false --bind-address=127.0.0.1 --port=0
start kubelet kubelet --config="$run/kubelet.yaml" --kubeconfig="$keys/kubelet.kubeconfig" \
  --hostname-override="$node_name" --node-ip="$node_address" --root-dir=/var/lib/kubelet --container-runtime=remote \
  --container-runtime-endpoint="unix://$run/containerd.sock" --pod-infra-container-image=localhost/pause:1 \
  --cert-dir="$run/kubelet-keys" --v=1
start kube-proxy kube-proxy --config="$run/kube-proxy.yaml"
set +x
# Whatever loses its parent becomes a child of this process, and is reaped here.
while :; do wait -n || true; sleep 1; done
