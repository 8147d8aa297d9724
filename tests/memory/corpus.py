"""Memories, each with a question that it answers, and questions that none of them answers."""

from __future__ import annotations

ENGLISH = {
    "The user's favourite colour is teal.": "what is my favorite color?",
    "User is allergic to peanuts and shellfish.": "Do I have any allergies?",
    "Alice's sister Maria has lived in Lisbon since 2019.": "Where does Alice's sister live?",
    "The staging database runs on Postgres 16 in eu-west-1.": "which version of Postgres is the staging database on?",
    "Deployments happen every Tuesday at 14:00 UTC and need two approvals.": "When do we deploy?",
    "The user prefers short answers without emojis.": "How short should your answers be?",
    "The quarterly report is due on March 31st.": "when's the quarterly report due",
    "Bob's cat is called Whiskers and is nine years old.": "What's the name of Bob's cat?",
    "The billing service retries failed payments three times.": "how often does billing retry a failed payment?",
    "User is learning Spanish and practises in the evening.": "which language am I learning?",
    "The company's refund policy allows returns within 30 days.": "what's the refund policy?",
    "Always run the linter before committing to the main branch.": "what must I do before I commit?",
    "The user drives an electric car, a blue Renault Zoe.": "what car do I drive?",
    "The office wifi password is rotated monthly by the IT team.": "who rotates the wifi password?",
    "Customer Contoso has a contract for 250 seats until 2027.": "How many seats does Contoso have?",
    "The Springfield warehouse ships 340 parcels a day.": "How many parcels a day does Springfield ship?",
}

ENGLISH_UNRELATED = [
    "What is the weather like in Tokyo?",
    "Write a haiku about autumn leaves.",
    "Explain how photosynthesis works",
    "What is the capital of France?",
    "Hello, how are you?",
    "Translate 'good night' into German",
    "Tell me a joke about programmers",
    "Who won the world cup in 1998?",
    "How do vaccines work?",
    "Please compute the factorial of seventeen",
]

ZHONGWEN = {
    "用户最喜欢的颜色是蓝绿色。": "我最喜欢什么颜色？",
    "用户对花生和海鲜过敏。": "我对什么过敏？",
    "小王的妹妹住在上海浦东。": "小王的妹妹住在哪里？",
    "测试数据库运行在Postgres 16上。": "测试数据库用的是哪个版本的Postgres？",
    "每周二下午两点发布新版本，需要两人批准。": "什么时候发布新版本？",
    "用户喜欢简短的回答，不要表情符号。": "你应该怎样回答我？",
    "季度报告的截止日期是三月三十一日。": "季度报告什么时候截止？",
    "小李的猫叫咪咪，今年九岁。": "小李的猫叫什么名字？",
    "支付失败后系统会自动重试三次。": "支付失败会重试几次？",
    "用户正在学习西班牙语，每天早上练习。": "我在学什么语言？",
    "公司的退款政策允许三十天内退货。": "退款政策是什么？",
    "提交代码之前必须先运行代码检查。": "提交代码之前要做什么？",
    "用户开一辆蓝色的电动汽车。": "我开什么车？",
    "无线网络密码每月由信息技术部门更换。": "谁更换无线网络密码？",
}

ZH_UNRELATED = [
    "明天北京天气怎么样？",
    "请写一首关于秋天的诗",
    "帮我计算十七乘以二十三",
    "解释一下光合作用的原理",
    "法国的首都是哪里？",
    "你好，最近好吗？",
    "给我讲一个程序员的笑话",
    "哈姆雷特的剧情是什么？",
    "疫苗是如何起作用的？",
]

# Everything that reading text has a rule for, in a few lines.
MIXED = [
    "Maria's café (naïve façade) doesn’t serve ﬁne Ⅷ-year-old WHISKY; İstanbul and Straße x_y_z 3.14 v2.0.1-rc1",
    "Ремонт лифта начнётся в понедельник, привет из Αθήνα και Θεσσαλονίκη",
    "Kubernetes集群在2024年升级了，用户alice@example.com喜欢用Python3写爬虫，可以告诉大家吗？",
    "東京タワーへ行きたいです。カタカナとひらがな、ﾊﾝｶｸ 서울에서 만나요 สวัสดีครับ",
    "the of and to " + "running " * 40 + "invoice " * 7 + "a" * 200 + " b1" * 90,
    "user's users’ users'll we've I'd O'Brien rock'n'roll 'tis it’s s't \u0301combining e\u0301 🙂emoji🙂text",
]
