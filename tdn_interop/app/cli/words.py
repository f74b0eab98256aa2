"""What the command line says, in English and Chinese. Sentences about errors are in `reasons.py`."""

from __future__ import annotations

from dataclasses import dataclass

from tdn_interop.reasons import Blame

LANGUAGES = ("en", "zh")

# Labels of the fields of documents; English and Chinese.
_LABELS = {
    "advice": ("advice", "建议"),
    "age_s": ("age", "距今"),
    "at_ms": ("revoked", "吊销时间"),
    "agreement_sha256": ("agreement SHA-256", "约定 SHA-256"),
    "algorithm": ("algorithm", "算法"),
    "answers": ("answers", "应答"),
    "backward_bytes": ("← bytes", "← 字节"),
    "backward_rate": ("← rate", "← 速率"),
    "bundle": ("bundle", "存证包"),
    "bytes": ("size", "大小"),
    "certificate_sha256": ("SHA-256 of the certificate", "证书 SHA-256"),
    "current": ("by the CA of now", "由现任 CA 签发"),
    "overlap_ends_at_ms": ("old root counts until", "旧根有效至"),
    "certificate_expires_at_ms": ("certificate ends", "证书到期"),
    "common": ("common", "共同"),
    "columns": ("columns", "列"),
    "config": ("configuration", "配置文件"),
    "consented": ("consented", "已同意"),
    "confirmed_by": ("coordinator confirmed by", "协调方获以下参与方确认"),
    "coordinator": ("coordinator", "协调方"),
    "count": ("times", "次数"),
    "created_at_ms": ("created", "创建时间"),
    "credit_bytes": ("credit left", "剩余额度"),
    "delimiter": ("delimiter", "分隔符"),
    "destination": ("destination", "目的节点"),
    "detail": ("detail", "详情"),
    "direction": ("direction", "方向"),
    "distinct_keys": ("distinct keys", "不同键数"),
    "duplicate_rows": ("duplicate rows", "重复行数"),
    "empty_rows": ("rows with an empty key", "空键行数"),
    "encoding": ("encoding", "编码"),
    "ended_at_ms": ("ended", "结束时间"),
    "ends_s": ("certificate", "证书剩余"),
    "enrolled_at_ms": ("enrolled", "入网时间"),
    "expires_at_ms": ("valid until", "有效期至"),
    "forward_bytes": ("→ bytes", "→ 字节"),
    "forward_rate": ("→ rate", "→ 速率"),
    "jobs": ("jobs", "作业"),
    "learns": ("who learns what", "各方所知"),
    "letters": ("letters", "信件数"),
    "links": ("links", "链路"),
    "moved": ("moved", "已传输"),
    "neighbour": ("neighbour", "相邻节点"),
    "party_states": ("said so far", "各方已回应"),
    "facts": ("facts of this node", "本节点事实"),
    "failure": ("failure", "失败原因"),
    "files": ("files", "文件"),
    "flow": ("flow", "流程"),
    "flow_sha256": ("flow SHA-256", "流程 SHA-256"),
    "format": ("format", "格式"),
    "hops": ("relays", "中继"),
    "id": ("id", "标识"),
    "identity_sha256": ("identity SHA-256", "身份 SHA-256"),
    "issued_at_ms": ("issued", "签发时间"),
    "listed": ("told to everybody", "已通告全网"),
    "queued_bytes": ("queued", "待确认"),
    "rate": ("rate", "速率"),
    "reason": ("reason", "原因"),
    "refusals": ("refused", "拒绝次数"),
    "sessions": ("sessions", "会话"),
    "since_s": ("for", "持续时间"),
    "source": ("source", "源节点"),
    "stale": ("too old", "过旧"),
    "stands": ("stands", "已建立"),
    "to": ("for node", "收件节点"),
    "topic": ("topic", "主题"),
    "topics": ("topics", "主题数"),
    "transfers": ("transfers", "传输"),
    "tunnels": ("tunnels", "隧道"),
    "version": ("version", "版本"),
    "intersection": ("in common", "交集数量"),
    "inputs": ("inputs", "输入"),
    "job_id": ("job", "作业"),
    "keys": ("keys", "键"),
    "learned": ("learned, in keys", "获知的键数"),
    "oldest_at_ms": ("oldest", "最早"),
    "linked": ("linked to parent", "已连接上级"),
    "listen": ("listens on", "监听地址"),
    "log": ("log", "日志"),
    "age": ("age", "已过"),
    "kept_by": ("kept by", "建链方"),
    "log_size": ("evidence log size", "存证日志条数"),
    "logs": ("logs", "存证日志"),
    "made_at_ms": ("backup of", "备份时间"),
    "matches": ("matches", "匹配数"),
    "members": ("members", "成员"),
    "name": ("name", "名称"),
    "next": ("next", "下一跳"),
    "node": ("node", "节点"),
    "node_id": ("node", "节点"),
    "noted_at_ms": ("noted", "记录时间"),
    "ok": ("ok", "正常"),
    "out": ("file", "文件"),
    "outcome": ("outcome", "结果"),
    "parent": ("parent", "上级节点"),
    "parties": ("parties", "参与方"),
    "party_state": ("own part", "本方状态"),
    "path": ("path", "路径"),
    "peers": ("open sessions", "已建会话"),
    "pid": ("process", "进程号"),
    "prefix": ("leads to", "目的前缀"),
    "progress": ("progress", "进度"),
    "received_bytes": ("received", "已接收"),
    "recipient": ("recipient", "结果接收方"),
    "recipients": ("recipients", "结果接收方"),
    "registered_at_ms": ("registered", "登记时间"),
    "result": ("result", "结果"),
    "result_file": ("result", "结果文件"),
    "result_rows": ("rows of the result", "结果行数"),
    "result_sha256": ("SHA-256 of the result", "结果 SHA-256"),
    "root_sha256": ("SHA-256 of the roots", "根证书 SHA-256"),
    "role": ("role", "角色"),
    "round_trip_ms": ("round trip", "往返时延"),
    "rows": ("rows", "行数"),
    "runs": ("runs", "运行中"),
    "seconds": ("seconds", "秒"),
    "sender": ("sender", "发送方"),
    "sent_bytes": ("sent", "已发送"),
    "sha256": ("SHA-256", "SHA-256"),
    "size_bytes": ("bundle size", "存证包大小"),
    "state": ("state", "状态"),
    "stated": ("stated", "陈述"),
    "suite": ("suite", "算法套件"),
    "took_s": ("took", "用时"),
    "top": ("top", "顶级节点"),
    "top_identity_key": ("identity key of the top", "顶级节点身份公钥"),
    "top_identity_sha256": ("identity SHA-256 of the top", "顶级节点身份 SHA-256"),
    "transfer_id": ("transfer", "传输"),
    "peer": ("other node", "对端节点"),
    "total_bytes": ("size", "大小"),
    "stored_bytes": ("safe", "已落盘"),
    "resumes": ("went on after an interruption", "断点续传次数"),
    "resent_bytes": ("sent again", "重传"),
    "uptime_s": ("uptime", "运行时长"),
    "value": ("loads", "加载项"),
    "verified": ("verified", "已验证"),
}

_SENTENCES = {
    "blame": ("fault", "责任"),
    "bundle_verified": ("The evidence holds.", "存证验证通过。"),
    "cancelled": ("Job {job} is being cancelled.", "正在取消作业 {job}。"),
    "decided_no": ("Job {job} is refused.", "已拒绝作业 {job}。"),
    "decided_yes": ("Job {job} is approved.", "已同意作业 {job}。"),
    "details": ("details", "详情"),
    "draining": (
        "{moving} tunnels move, {quiet} are quiet, {jobs} jobs compute",
        "{moving} 条隧道传输中，{quiet} 条空闲，{jobs} 个作业计算中",
    ),
    "drain_goes_on": (
        "The drain goes on without this command; take it back: tdn node undrain",
        "排空仍在继续，可撤销：tdn node undrain",
    ),
    "drained": ("The node stops now; start it again when you like.", "节点即将停止，可随时重新启动。"),
    "undrained": ("The node takes new things again.", "节点恢复接受新请求。"),
    "error": ("error", "错误"),
    "fingerprint": (
        "Compare the identity SHA-256 with the operator of the other node out of band.",
        "请通过线下渠道与对方运营方核对身份 SHA-256。",
    ),
    "interrupted": ("interrupted", "已中断"),
    "job_goes_on": (
        "The job goes on without this command: tdn job watch {job}",
        "作业仍在继续，可随时查看：tdn job watch {job}",
    ),
    "in_general": ("in general", "总体而言"),
    "job_proposed": ("Job {job} is proposed to its parties.", "作业 {job} 已提交各参与方。"),
    "backup_open": (
        "The file holds the keys of this node and is not encrypted: whoever reads it is the node. Keep it offline.",
        "该文件含本节点密钥且未加密，持有者即可冒充本节点，请离线保管。",
    ),
    "backup_sealed": (
        "The file is encrypted; without the passphrase nobody can restore it.",
        "文件已加密，没有口令无法恢复。",
    ),
    "restored": (
        "The node is in {dir}. The old copy must never run again; the first start compares with the parent.",
        "节点已恢复到 {dir}。请确保旧副本不再运行；首次启动时会与上级核对存证日志。",
    ),
    "federate_ask": (
        "Were these fingerprints compared with the operator of {top} on another way, and is {top} to be trusted?",
        "是否已通过其他渠道与 {top} 运营方核对上述指纹，并确认信任 {top}？",
    ),
    "federate_both": (
        "Hand it to the operator of the other top and take theirs; both must run: tdn registry federate TEXT",
        "请交给对方顶级节点的运营方并取得其文本，双方均需执行：tdn registry federate TEXT",
    ),
    "parted": ("{top} is trusted no longer.", "已不再信任 {top}。"),
    "revoke_ask": (
        "Revoke {node}? It is refused everywhere and for ever, and so is everybody below it; the id never comes back.",
        "确定吊销 {node}？它及其下级将被全网永久拒绝，该标识不可恢复。",
    ),
    "revoked_listed": (
        "{node} is revoked; every node that reaches its hub hears of it within seconds.",
        "{node} 已吊销，与枢纽连通的节点将在数秒内获知。",
    ),
    "revoked_waits": (
        "{node} is refused here. The top cannot be reached; it is told as soon as it can be: tdn registry status",
        "本节点已拒绝 {node}。暂时无法连接顶级节点，恢复后将自动通告：tdn registry status",
    ),
    "joined": ("This node is enrolled. Start it: tdn node run", "本节点已入网，可启动：tdn node run"),
    "next": ("next", "下一步"),
    "no": ("no", "否"),
    "none": ("none", "无"),
    "receiving": ("receiving", "接收中"),
    "rule": ("rule", "规则"),
    "sending": ("sending", "发送中"),
    "token_once": (
        "The token works once, for this node only. Hand it over on a private way.",
        "令牌仅供该节点使用一次，请通过私密渠道转交。",
    ),
    "top_certificate": ("certificate ends in {left}", "证书剩余 {left}"),
    "top_down": ("{node} does not run.", "{node} 未运行。"),
    "top_draining": ("{node}  {role}  up {up}  draining", "{node}  {role}  已运行 {up}  排空中"),
    "top_jobs": ("Jobs", "作业"),
    "top_links": ("Links", "链路"),
    "top_mailboxes": ("Letters that wait here", "待取信件"),
    "top_more": ("{count} more", "另有 {count} 项"),
    "top_nodes": ("Nodes", "节点"),
    "top_refusals": ("Refused in the last minute", "最近一分钟的拒绝"),
    "top_runs": ("{node}  {role}  up {up}", "{node}  {role}  已运行 {up}"),
    "top_sessions": ("Sessions", "会话"),
    "top_transfers": ("Transfers", "传输"),
    "top_tunnels": ("Tunnels", "隧道"),
    "why": ("why", "原因"),
    "node_away": (
        "{node} does not answer; waiting for it. The transfer goes on when it is back.",
        "{node} 无应答，正在等待；待其恢复后传输将继续。",
    ),
    "transfer_given_up": (
        "The transfer is given up, here and at the other node.",
        "传输已放弃，对端节点会收到通知。",
    ),
    "transfer_goes_on": (
        "The transfer is on record and goes on when the node is back: tdn channel ls; give it up: tdn channel cancel ID",
        "传输已记录，节点恢复后将继续：tdn channel ls；放弃：tdn channel cancel ID",
    ),
    "noticed": ("noticed by", "发现方"),
    "yes": ("yes", "是"),
    "lab_up": (
        "The network runs. Talk to a node: tdn node status --config {dir}/cn/node.toml; stop: tdn lab down --dir {dir}",
        "网络已启动。访问节点：tdn node status --config {dir}/cn/node.toml；停止：tdn lab down --dir {dir}",
    ),
    "demo_network": (
        "starting the network",
        "启动网络",
    ),
    "demo_data": (
        "registering data",
        "登记数据",
    ),
    "demo_job": (
        "running the job",
        "运行作业",
    ),
    "demo_evidence": (
        "verifying the evidence",
        "验证存证",
    ),
    "demo_stop": (
        "stopping the network",
        "停止网络",
    ),
    "demo_phases": (
        "Time: {phases}",
        "耗时：{phases}",
    ),
    "demo_verify": (
        "Verify it yourself: tdn evidence verify {bundle} --top-key {top}",
        "自行验证：tdn evidence verify {bundle} --top-key {top}",
    ),
}

_BLAME = {
    Blame.REQUESTER: ("the side that asked", "请求方"),
    Blame.RESPONDER: ("the side that was asked", "响应方"),
    Blame.PEER: ("the peer", "对端"),
    Blame.HUB: ("a hub on the way", "途经的枢纽"),
    Blame.NETWORK: ("the network", "网络"),
    Blame.OPERATOR: ("the operator of this node", "本节点运营方"),
    Blame.NOBODY: ("nobody", "无责任方"),
    Blame.PRODUCT: ("this product", "本产品"),
}
# The same, when a known node has noticed it.
_BLAME_AT = {
    Blame.RESPONDER: ("{node}", "{node}"),
    Blame.OPERATOR: ("the operator of {node}", "{node} 的运营方"),
    Blame.PRODUCT: ("the product of {node}", "{node} 的产品"),
}


@dataclass(frozen=True, slots=True)
class Words:
    """The catalogue in one language."""

    language: str = "en"

    def pick(self, pair: tuple[str, str]) -> str:
        """The half of (English, Chinese) in this language."""
        return pair[LANGUAGES.index(self.language)]

    def label(self, name: str) -> str:
        """Label of a field; a field without one is shown by its name."""
        if name in _LABELS:
            return self.pick(_LABELS[name])
        return name if "." in name else name.replace("_", " ")

    def say(self, key: str, **values: str) -> str:
        """A fixed sentence."""
        return self.pick(_SENTENCES[key]).format(**values)

    def blame(self, blame: Blame, node: str = "") -> str:
        """Whose fault, in words, as `node` sees it; without one, as this node does."""
        known = _BLAME_AT if node and blame in _BLAME_AT else _BLAME
        return self.pick(known[blame]).format(node=node)
